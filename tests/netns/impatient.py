"""`python -m tests.netns.impatient`: a forwarder that takes a worker for hung after two seconds."""

from forwarder import crew
from forwarder.__main__ import command

if __name__ == "__main__":
    crew.LOOK_S = 2 / crew.LOOKS_IN_VAIN
    command()
