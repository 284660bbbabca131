"""Checkpoints written in other forms: opened whatever their layout, streamed out, checked.

`formats` lists the forms, `names` says what each calls a weight, `converting` runs a conversion.
Not called `convert`: that is the function, in the package's table of contents.
"""
