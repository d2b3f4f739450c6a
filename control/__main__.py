"""`python -m control`: the command `loden`, wherever its script may be."""

from control.cli import main

main(prog_name="loden")
