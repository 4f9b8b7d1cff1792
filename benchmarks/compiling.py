"""Time one block, eager and compiled, with the time that compiling takes at first and with torch's cache.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/compiling.py        # S/2 and B/4; needs a C++ compiler
    python benchmarks/compiling.py --sizes DiT-S/2 --dtypes float32 --rounds 5

`compile_repeated_blocks` compiles one block for all. A row runs it as one guided step of an image does, on two rows of
tokens. "products and attention" is what eager spends on them, which the default compiler leaves to the same libraries:
no gain can be larger than that of taking the rest away. "frozen" folds the weights into the graph and lays them out for
oneDNN; "generated" lets the compiler write the products as well, and choose the faster. All times are seconds of the
processor, those of compiling with the C++ compiler's; of a block's, the fastest of the rounds counts. The cache of
torch is an empty folder at first.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor.config
from roofline import Watch
from runtimes import describe_machine
from sampling import make_model

FROZEN = {"freezing": True}
WAYS: dict[str, dict[str, Any]] = {
    "compiled": {},
    "compiled, frozen": FROZEN,
    "compiled, frozen, generated": {**FROZEN, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"},
}
BACKEND = "inductor"

Run = Callable[[], object]


def processor_seconds() -> float:
    """Return the seconds of the processor that this process and its ended children have taken."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def first_seconds(run: Run) -> float:
    """Return the seconds of a first call, which compiles."""
    begin = processor_seconds()
    run()
    return processor_seconds() - begin


def race(runs: dict[str, Run], rounds: int, repeats: int = 4) -> dict[str, float]:
    """Return the least seconds of each run; each round runs all of them in turn."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(repeats):
                begin = time.process_time()
                run()
                least[name] = min(least[name], time.process_time() - begin)
    return least


def seconds_in_libraries(run: Run, rounds: int) -> float:
    """Return the least seconds that a call spends on products and attention."""
    watches = []
    for _ in range(rounds):
        with Watch() as watch:
            run()
        watches.append([operator for operator in watch.operators if operator.part != "element-wise"])
    return sum(min(each.seconds for each in same) for same in zip(*watches, strict=True))


@torch.no_grad()
def compare(name: str, dtype: str, rounds: int) -> None:
    """Print a line for each way."""
    model = make_model(name).to("cpu", getattr(torch, dtype))
    block, embedding = model.blocks[0], model.condition(torch.tensor([500.0]), torch.tensor([0])).embedding
    embedding = embedding.repeat(2, 1)  # (2, D)
    derived = block.condition(embedding)
    x = torch.randn(2, model.pos_embed.shape[1], model.config.hidden_size)

    def on(call: Callable[..., Any]) -> Run:
        return lambda: call(x, embedding, derived)

    expected = on(block)()
    runs, first, again = {"eager": on(block)}, {}, {}
    for way, options in WAYS.items():
        for seconds in (first, again):
            torch._dynamo.reset()
            choice = {"options": options} if BACKEND == "inductor" else {}
            runs[way] = on(torch.compile(block, backend=BACKEND, fullgraph=True, **choice))
            seconds[way] = first_seconds(runs[way])
        error = (runs[way]() - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == "float32" else 2e-2), f"{way}: relative error {error:.1e}"
    libraries = seconds_in_libraries(on(block), rounds)
    least = race(runs, rounds)
    print(f"| {name} | {dtype} | products and attention | - | - | {1000 * libraries:.2f} | - |", flush=True)
    for way, seconds_of_block in least.items():
        compiling = [f"{seconds[way]:.1f}" if way in seconds else "-" for seconds in (first, again)]
        faster = least["eager"] / seconds_of_block
        print(f"| {name} | {dtype} | {way} | {' | '.join(compiling)} | {1000 * seconds_of_block:.2f} | {faster:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="Number of rounds.")
    parser.add_argument("--sizes", nargs="+", default=["DiT-S/2", "DiT-B/4"], help="Names of the paper's models.")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="Number formats.")
    arguments = parser.parse_args()
    print(describe_machine() + "\n")
    heads = ("model", "dtype", "computed by", "compiling, s", "from the cache, s", "ms a block", "times faster")
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    # in this process, so that the time of its C++ compiler is counted
    one_thread = torch._inductor.config.patch(compile_threads=1)
    with TemporaryDirectory() as folder, one_thread:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for name in arguments.sizes:
            for dtype in arguments.dtypes:
                compare(name, dtype, arguments.rounds)


if __name__ == "__main__":
    main()
