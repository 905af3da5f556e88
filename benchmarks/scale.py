"""What binds first at so many turns per second, what it takes and costs: `python -m benchmarks.scale`.

Needs are multiplied out from what was measured (docs/performance.md, docs/scale.md) and compared with Azure's
documented limits. Where instances compete for the counters of limits, arithmetic is not enough: they are simulated
(benchmarks/contention.py). The simulation is first compared with the measured points of docs/scale.md; the benchmark
ends with an error if a figure differs by more than FACTOR, or if the simulated rate is not the one in docs/scale.md.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import ceil

from benchmarks.contention import Durations, Result, Traffic, simulate
from docs import monthly_cost

FACTOR = 2.0
LEVELS = (10.0, 1_000.0, 100_000.0)
DAY_S, MONTH_S = 86_400, 86_400 * monthly_cost.DAYS

# Documented by Microsoft; docs/scale.md has the pages and their dates.
ENTITIES, REQUESTS = 2_000, 20_000  # per second: of a table partition, of a storage account
REGION_MB, APP_INSTANCES = 512_000, 1_000  # Flex Consumption: a subscription's in a region, an app's
TIER_1, TIER_6 = (1_000_000, 1_000), (15_000_000, 15_000)  # gpt-5.4-mini, GlobalStandard: tokens, requests a minute
SUMMARY_S = 30 * 60  # of a timer's run on Flex Consumption, as host.json sets no functionTimeout
CORES = {512: 0.25, 2_048: 1.0, 4_096: 2.0}

# Measured on the machine of docs/performance.md and docs/scale.md.
CPU_S = 0.0181  # of a streamed turn; an instance's core is assumed to be as fast, and Python to use one
LIMITED_ENTITIES = 2 + 0.86 * 2 + 3.14  # of a limited call with 8 instances: rows and counters written, counters read
LIMITED_REQUESTS = 2  # of a limited call with 8 instances, beyond those without limits
SUMMARY_ROWS = 32_463  # per second of CPU time, of a day of 300,000
SHARDS = 16

# Assumed: Azure's answers, and what of a turn's waiting is too long. Never measured.
SLOW_S = 2.0  # 95 % of the limited calls are opened and settled in less
RATES = (10, 25, 50, 100, 200)  # per second, that are simulated
COMPETING = 50  # of these the highest that several instances carry, with the defaults

# Fitted to the CPU time of a call in docs/scale.md (2.8 ms, 3.3 ms without limits, 8.1 ms with 8 processes).
AZURITE = Durations(0, 0.0008, 0.0003, 0.00015, 0.0007, 0.0006, cores=2)


@dataclass(frozen=True)
class Point:
    """A measured row of docs/scale.md: calls per second, and per call writes, conflicts and reads."""

    instances: int
    pause: float
    rate: float
    writes: float
    conflicts: float
    reads: float


MEASURED = (
    Point(1, 0.0, 379, 0.25, 0, 0.00),
    Point(4, 0.0, 269, 0.31, 0.06, 0.54),
    Point(8, 0.0, 147, 0.41, 0.16, 1.95),
    Point(1, 0.5, 17, 1.89, 0, 0.05),
    Point(4, 0.5, 46, 0.92, 0.21, 2.90),
    Point(8, 0.5, 72, 0.86, 0.30, 3.14),
)


def option(default: float, text: str) -> float:
    value: float = field(default=default, metadata={"help": text})
    return value


@dataclass(frozen=True)
class Plan:
    seconds: float = option(float(monthly_cost.SECONDS), "of a turn")
    limited: float = option(1.0, "share of the calls that LIMITS apply to; azd sets a limit on all")
    memory: float = option(2_048, "MB of an instance: 512, 2048 or 4096")
    concurrency: float = option(32, "HTTP_CONCURRENCY: requests that an instance serves at once")
    instances: float = option(40, "MAXIMUM_INSTANCES")
    capacity: float = option(20, "MODEL_CAPACITY: thousands of tokens a minute")
    regions: float = option(1, "regions with a deployment of the model, each with a quota of its own")
    requests: float = option(monthly_cost.STORAGE_REQUESTS, "to storage, of a turn without limits")
    prompt: float = option(monthly_cost.PROMPT, "tokens of a prompt")
    answer: float = option(800, "most tokens of an answer (AZURE_OPENAI_MAX_TOKENS): the quota counts these")
    turns: float = option(10, "of a session on one day (assumed)")
    storage_ms: float = option(10, "milliseconds until storage answers (assumed)")


@dataclass(frozen=True)
class Bound:
    """`need`: of one turn per second, in the unit of `limit`."""

    name: str
    need: float
    limit: float

    @property
    def carries(self) -> float:
        """Turns per second."""
        return self.limit / self.need if self.need else float("inf")


FIGURES = ("rate", "writes", "conflicts", "reads")


def differs(predicted: float, measured: float) -> bool:
    """By more than FACTOR. Of figures that are next to nothing, only the difference counts."""
    low, high = sorted((predicted, measured))
    return high - low > 0.1 and high > FACTOR * low


def predict(point: Point, seconds: float, runs: int) -> Point:
    result = simulate(Traffic(point.instances, seconds, point.pause, tasks=8), AZURITE, runs)
    return replace(point, **{name: getattr(result, name) for name in FIGURES})


def per_instance(plan: Plan) -> float:
    """Turns per second that one instance carries."""
    return min(plan.concurrency / plan.seconds, min(CORES[int(plan.memory)], 1.0) / CPU_S)


def competing(plan: Plan, rate: float, seconds: float, runs: int) -> Result:
    """Limited calls of several instances with Azure's storage, whose partition serves ENTITIES per second."""
    entity = 1 / ENTITIES
    azure = Durations(plan.storage_ms / 1000, entity, 0, entity, AZURITE.app_request, AZURITE.app_entity, cores=10**6)
    instances = max(2, ceil(rate / per_instance(plan)))
    return simulate(Traffic(instances, seconds, plan.seconds / 2, rate=rate), azure, runs)


def bounds(plan: Plan, carried: float) -> list[Bound]:
    """`carried`: limited calls per second of several instances."""
    instances, tokens = 1 / per_instance(plan), 60 * (plan.prompt + plan.answer)

    def quota(tier: tuple[int, int]) -> float:
        return plan.regions * min(tier[0], tier[1] * (plan.prompt + plan.answer))

    in_region = REGION_MB / plan.memory
    rows = [
        Bound(f"model: capacity {plan.capacity:g}, tokens a minute", tokens, 1000 * plan.capacity),
        Bound("model: quota of tier 1, tokens a minute", tokens, quota(TIER_1)),
        Bound("model: quota of tier 6, tokens a minute", tokens, quota(TIER_6)),
        Bound("limits: calls/s of competing instances", plan.limited, carried),
        Bound("limits: entities/s of the month's partition", LIMITED_ENTITIES * plan.limited, ENTITIES),
        Bound("without limits: entities/s of each of 16 partitions", 2 / SHARDS, ENTITIES),
        Bound(f"instances: `MAXIMUM_INSTANCES` {plan.instances:g}", instances, plan.instances),
        Bound("instances: the region's quota", instances, in_region),
        Bound("instances: the most of an app", instances, APP_INSTANCES),
        Bound("storage: requests/s of an account", plan.requests + LIMITED_REQUESTS * plan.limited, REQUESTS),
        Bound("summary: a day's rows, limited", DAY_S * plan.limited, ENTITIES * SUMMARY_S),
        Bound("summary: a day's rows, CPU time", DAY_S, SUMMARY_ROWS * SUMMARY_S),
        Bound("index: entities/s of the day's sessions", 1 / plan.turns, ENTITIES),
    ]
    return sorted((row for row in rows if row.need), key=lambda row: row.carries)


def short(number: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(first: str, rows: dict[str, list[str]], columns: list[str]) -> str:
    lines = [f"| {first} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def at(levels: list[float]) -> list[str]:
    return [f"at {level:,g} turns/s" if level == levels[0] else f"at {level:,.0f}" for level in levels]


def bounds_table(plan: Plan, carried: float, levels: list[float]) -> str:
    def cell(row: Bound, level: float) -> str:
        return f"**{short(row.need * level)}**" if level > row.carries else short(row.need * level)

    rows = {
        row.name: [short(row.limit), short(row.carries), *(cell(row, level) for level in levels)]
        for row in bounds(plan, carried)
    }
    return table("bound", rows, ["limit", "carries, turns/s", *at(levels)])


def takes_table(plan: Plan, carried: float, levels: list[float]) -> str:
    """What it takes, and USD a month at that rate day and night."""
    by_name = {row.name: row for row in bounds(plan, carried)}

    def times(name: str) -> list[str]:
        return [f"{ceil(level / by_name[name].carries):,}" if name in by_name else "1" for level in levels]

    def dollars(cost: Callable[[float], float]) -> list[str]:
        return [short(cost(level)) for level in levels]

    def functions(level: float) -> float:
        running = ceil(level / per_instance(plan)) * plan.memory / 1024 * MONTH_S
        calls = level * MONTH_S / 1e6 * float(monthly_cost.MILLION_CALLS)
        return running * float(monthly_cost.GB_SECOND) + calls

    def turns(level: float) -> int:
        return int(level * MONTH_S)

    def transactions(level: float) -> float:
        requests = turns(level) * LIMITED_REQUESTS * plan.limited / 10_000 * float(monthly_cost.TEN_THOUSAND_REQUESTS)
        return float(monthly_cost.storage(turns(level))) + requests

    rows = {
        "instances": [f"{ceil(level / per_instance(plan)):,}" for level in levels],
        "storage accounts": times("storage: requests/s of an account"),
        "apps, so that limits carry it": times("limits: calls/s of competing instances"),
        "regions with the model, at tier 6": times("model: quota of tier 6, tokens a minute"),
        f"USD a month: model, {monthly_cost.MODELS[0]}": dollars(
            lambda level: float(monthly_cost.model(monthly_cost.MODELS[0], turns(level)))
        ),
        "USD a month: Functions": dollars(functions),
        "USD a month: Table Storage": dollars(transactions),
        "USD a month: logs, without a cap": dollars(lambda level: float(monthly_cost.logs(turns(level)))),
    }
    return table("it takes", rows, at(levels))


def compare(seconds: float, runs: int) -> None:
    """Print predicted beside measured. Exits if they differ."""
    for point in MEASURED:
        predicted = predict(point, seconds, runs)
        pairs = {name: (getattr(predicted, name), getattr(point, name)) for name in FIGURES}
        text = ", ".join(f"{name} {ours:.2f} ({measured:g})" for name, (ours, measured) in pairs.items())
        print(f"{point.instances} x 8, calls of {point.pause} s: {text}", flush=True)
        if off := [name for name, (ours, measured) in pairs.items() if differs(ours, measured)]:
            sys.exit(f"the simulation is off by more than {FACTOR:g} times: {', '.join(off)}")


def search(plan: Plan, seconds: float, runs: int) -> float:
    """The highest of RATES that competing instances carry, before the first that they do not."""
    carried = 0.0
    for rate in RATES:
        result = competing(plan, rate, seconds, runs)
        waits = f"median {result.median:.2f} s, 95 % below {result.slow:.2f} s, {result.gave_up:.3f} gave up per call"
        print(f"{rate} limited calls/s of 2 or more instances, storage in {plan.storage_ms:g} ms: {waits}", flush=True)
        if result.slow > SLOW_S or result.gave_up > 0.001:
            break
        carried = rate
    return carried


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns-per-second", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--simulated-seconds", type=float, default=6.0, help="of each simulated run (6)")
    parser.add_argument("--runs", type=int, default=3, help="simulated runs of each rate (3)")
    for each in fields(Plan):
        text = f"{each.metadata['help']} ({each.default:g})"
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=each.default, help=text)
    chosen = vars(parser.parse_args())
    if chosen["memory"] not in CORES:
        parser.error(f"--memory is one of {', '.join(map(str, CORES))}")
    plan, levels = Plan(**{each.name: chosen[each.name] for each in fields(Plan)}), chosen["turns_per_second"]
    print("predicted (measured), per call:")
    compare(chosen["simulated_seconds"], chosen["runs"])
    carried = search(plan, chosen["simulated_seconds"], chosen["runs"])
    if plan == Plan() and carried != COMPETING:
        sys.exit(f"competing instances carry {carried:g} limited calls/s, docs/scale.md says {COMPETING}")
    print("", bounds_table(plan, carried, levels), "", takes_table(plan, carried, levels), "", sep="\n")
    print("nothing ran beside it: it measures no time")
    answers = []
    for level in levels:
        exceeded = [row.name for row in bounds(plan, carried) if row.carries < level]
        answers.append(f"at {level:,g} turns/s {len(exceeded)} bounds ({'; '.join(exceeded[:3])})")
    print(f"exceeded, first those that bind first: {', '.join(answers)}")


if __name__ == "__main__":
    main()
