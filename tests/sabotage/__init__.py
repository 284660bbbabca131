"""Takes out each control of docs/security.md, one at a time, and sees that a test notices."""
