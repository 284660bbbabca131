"""`python -m gemma3vl_app.cli`: the same as the command `gemma3vl`."""

from gemma3vl_app.cli.main import main

main()
