"""What facts about the compute process and its device mean for a node. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gennode.engine.child.jail import Jail
from gennode.engine.devices import DeviceReport
from gennode.node.doctor.facts import Compute, Facts, Failure
from gennode.node.doctor.finding import Finding, failed, ok, size_text, skip, warn

_NO_LANDLOCK = (
    "use Linux 5.13 or later with landlock among `lsm=` on its command line, or run gennode as "
    "a user of its own, or in a container, that can read nothing else"
)
_NO_SECCOMP = "use a Linux kernel with CONFIG_SECCOMP_FILTER, or run gennode as a user of its own"


def diagnose_compute(facts: Facts) -> Iterator[Finding]:
    """Lines about what computes; none of its figures if it was not started."""
    compute = facts.compute
    if isinstance(compute, Compute):
        yield _process(compute.jail)
        yield _device(compute.report)
        yield _speed(compute.report)
        yield _layer(compute.report)
    else:
        yield skip("compute process", f"not started; it would be held by: {facts.jail}")
    if isinstance(compute, Failure):
        yield failed("device", compute)
    if facts.wanted.device == "cpu":
        yield _gpu(facts.gpu)


def _process(jail: Jail) -> Finding:
    """Peers' numbers go through it: what it can reach matters if one of them breaks into it."""
    if not jail.landlock:
        words = f"it may read all that its user may ({jail.words})"
        return warn("compute process", words, _NO_LANDLOCK)
    if not jail.seccomp:
        words = f"it may call all of the kernel ({jail.words})"
        return warn("compute process", words, _NO_SECCOMP)
    return ok("compute process", f"it reads its model and nothing else ({jail.words})")


def _device(report: DeviceReport) -> Finding:
    free, total = (size_text(count) for count in (report.memory.free_bytes,
                                                  report.memory.total_bytes))  # fmt: skip
    return ok("device", f"{report.name} ({report.device}), {free} of {total} free")


def _speed(report: DeviceReport) -> Finding:
    words = (
        f"reads weights at {_rate(report.read_bytes_per_s)}B/s and computes "
        f"{_rate(report.flops_per_s)}FLOP/s in {report.dtype}"
    )
    to, back = report.to_device_bytes_per_s, report.from_device_bytes_per_s
    if to is not None and back is not None:
        words += f"; copies go to it at {_rate(to)}B/s, and back at {_rate(back)}B/s"
    return ok("speed", words)


def _layer(report: DeviceReport) -> Finding:
    times = ", ".join(
        f"{rows} in {time_s * 1e3:.3g} ms" for rows, time_s in sorted(report.layer_times_s.items())
    )
    like = f"{report.layer} model ({size_text(report.layer_bytes)})"
    return ok("layer", f"rows through the products of one of a {like}: {times}")


def _gpu(missing: Failure | None) -> Finding:
    if missing is None:
        return ok("gpu", "there is one, and --gpu computes on it")
    return ok("gpu", f"not asked for; {missing.words}")


def _rate(count: float) -> str:
    """Something in a second, with the prefix of its unit."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {prefix}"
        count /= 1000
    return f"{count:.3g} T"
