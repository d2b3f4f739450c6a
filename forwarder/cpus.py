"""Which CPUs get a worker."""

import os


def parse_cpus(text: str) -> tuple[int, ...]:
    """A list as taskset takes it: "0,2-5".  Raises ValueError."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is no list of CPUs such as '0,2-5'")
        cpus.extend(range(int(first), int(last or first) + 1))
    if not cpus or len(set(cpus)) != len(cpus):
        raise ValueError(f"{text!r} names no CPU, or one twice")
    return tuple(cpus)


def choose_cpus(cpus: str | None, workers: int | None) -> tuple[int, ...]:
    """The CPUs that get a worker: those named, else the first `workers` usable, else all usable.

    Raises ValueError.
    """
    usable = sorted(os.sched_getaffinity(0))
    if cpus is not None:
        chosen = parse_cpus(cpus)
        for cpu in chosen:
            if cpu not in usable:
                raise ValueError(f"{cpu} is not allowed; allowed: {', '.join(map(str, usable))}")
        return chosen
    if workers is not None and not 1 <= workers <= len(usable):
        raise ValueError(f"{workers} is not allowed; allowed: 1 to {len(usable)}")
    return tuple(usable[:workers])
