"""Show where the time of a guided step goes, beside the least time that this machine would need for it.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/roofline.py                 # S/2 and B/4, float32 and bfloat16
    python benchmarks/roofline.py --sizes DiT-S/2 --dtypes float32 --rounds 3
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647 python benchmarks/roofline.py    # keep memory

Every operator that torch runs in a call of the pipeline is timed by itself, in seconds of the processor, which other
programs disturb less than those of the clock; of each, the fastest round counts. Its floating-point operations are
those of torch's flop counter, its bytes those of its inputs and outputs. The least time of an operator is the larger of
the two quotients (Williams et al. 2009): operations over the rate of a large matrix product in this number format, and
bytes over the rate at which a sum of arrays reads and writes as many bytes. Both rates are measured first. What the
call takes beyond its operators is Python, the scheduler's arithmetic on numbers, and torch's dispatch.
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from runtimes import describe_machine
from sampling import call, make_pipelines
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dit_hf import DiTPipeline

MIB = 2**20
SIDE = 2048  # of the large matrix product
SIZES_MIB = (0.25, 1, 4, 16, 64, 256)  # of the sums of arrays
ATTENTION = ("attention", "softmax", "bmm")
PRODUCTS = ("mm", "addmm", "convolution", "linear")
PARTS = ("products", "attention", "element-wise")


@dataclass
class Operator:
    """One operator of a call.

    Args:
        part: Name in `PARTS`.
        flops: Number of floating-point operations, of products and attention only.
        moved: Number of bytes of its inputs and outputs.
        seconds: Seconds that the processor spent on it.
        before: Seconds that the processor spent between the operator before it and this one.
    """

    part: str
    flops: int
    moved: int
    seconds: float
    before: float


class Watch(TorchDispatchMode):
    """Record every operator that computes something; a view of the same memory does not."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.between, self.end = 0.0, time.process_time()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin, kwargs = time.process_time(), kwargs or {}
        self.between += begin - self.end
        result = func(*args, **kwargs)
        seconds = time.process_time() - begin
        if func.is_view:
            self.between += seconds
        else:
            part = part_of(func.overloadpacket.__name__)
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.operators.append(Operator(part, flops_of(func, args, kwargs, result), moved, seconds, self.between))
            self.between = 0.0
        self.end = time.process_time()
        return result


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the floating-point operations of a product or an attention, and 0 for anything else."""
    if "dot_product" in func.overloadpacket.__name__:  # those for CPUs have no row in torch's table
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    count = flop_registry.get(func.overloadpacket)
    return count(*args, **kwargs, out_val=result) if count else 0


def part_of(name: str) -> str:
    if any(word in name for word in ATTENTION):
        return "attention"
    return "products" if name.strip("_") in PRODUCTS else "element-wise"


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Return the least seconds of the processor that a function took, after a run that is not timed."""
    run()
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def product_rate(dtype: torch.dtype, rounds: int) -> float:
    """Return the floating-point operations a second of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / fastest(lambda: a @ b, rounds)


def memory_rates(rounds: int) -> dict[float, float]:
    """Return the bytes a second that a sum of two arrays reads and writes, by the bytes that it moves."""
    rates = {}
    for mebibytes in SIZES_MIB:
        length = int(mebibytes * MIB / 12)
        a, b, total = (torch.ones(length) for _ in range(3))
        repeats = max(1, int(16 / mebibytes))

        def add(a: torch.Tensor = a, b: torch.Tensor = b, total: torch.Tensor = total, repeats: int = repeats) -> None:
            for _ in range(repeats):
                torch.add(a, b, out=total)

        rates[mebibytes * MIB] = mebibytes * MIB * repeats / fastest(add, rounds)
    return rates


def least_seconds(operator: Operator, product: float, memory: dict[float, float]) -> float:
    """Return the time that the roofline allows; bytes count at the rate of the next larger sum that was measured."""
    rate = next((memory[size] for size in memory if size >= operator.moved), memory[max(memory)])
    return max(operator.flops / product, operator.moved / rate)


def watch(pipe: DiTPipeline, batch: int, num_steps: int, rounds: int) -> list[Operator]:
    """Return the operators of a call, each with its fastest time, after a call that is not timed."""
    watches = []
    for _ in range(rounds + 1):
        with Watch() as each:
            call(pipe, list(range(batch)), num_steps, output_type="latent")
        watches.append(each.operators)
    operators = watches[1]
    for same in zip(*watches[1:], strict=True):
        same[0].seconds = min(operator.seconds for operator in same)
        same[0].before = min(operator.before for operator in same)
    return operators


def page_faults(pipe: DiTPipeline, batch: int, num_steps: int) -> float:
    """Return the number of page faults of a step that nothing watches."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(pipe, list(range(batch)), num_steps, output_type="latent")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / num_steps


def rows(operators: list[Operator], num_steps: int, product: float, memory: dict[float, float]) -> list[str]:
    """Return the lines of a table: milliseconds of a step, their share, and the least at the roofline."""
    whole = sum(operator.seconds + operator.before for operator in operators)
    times = []
    for part in PARTS:
        own = [operator for operator in operators if operator.part == part]
        least = sum(least_seconds(operator, product, memory) for operator in own)
        times.append((part, sum(operator.seconds for operator in own), least))
    times.append(("Python and dispatch", sum(operator.before for operator in operators), 0))
    times.append(("together", whole, sum(least for _, _, least in times)))
    return [
        f"{part} | {1000 * taken / num_steps:.1f} | {taken / whole:.0%} | {1000 * least / num_steps:.1f} | "
        f"{(taken - least) / whole:.0%}"
        for part, taken, least in times
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--sizes", nargs="+", default=["DiT-S/2", "DiT-B/4"], help="Names of the paper's models.")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="Number formats.")
    parser.add_argument("--batch", type=int, default=1, help="Number of images.")
    parser.add_argument("--steps", type=int, default=4, help="Number of steps of a call.")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    memory = memory_rates(arguments.rounds)
    products = {name: product_rate(getattr(torch, name), arguments.rounds) for name in arguments.dtypes}
    print(describe_machine() + "\n")
    print("; ".join(f"{name} products {rate / 1e9:.0f} GFLOP/s" for name, rate in products.items()))
    print("sums: " + ", ".join(f"{size / MIB:g} MiB {rate / 1e9:.1f} GB/s" for size, rate in memory.items()) + "\n")
    print("| model | dtype | part | ms a step | share | least, ms | above the least |\n" + "|---" * 7 + "|")
    faults = []
    for name in arguments.sizes:
        pipe, _ = make_pipelines(name)
        for dtype in arguments.dtypes:
            pipe.to("cpu", getattr(torch, dtype))
            operators = watch(pipe, arguments.batch, arguments.steps, arguments.rounds)
            for line in rows(operators, arguments.steps, products[dtype], memory):
                print(f"| {name} | {dtype} | {line} |", flush=True)
            count = page_faults(pipe, arguments.batch, arguments.steps)
            faults.append(f"{name}, {dtype}: {count:.0f} page faults a step")
    print("\n" + "\n".join(faults))


if __name__ == "__main__":
    main()
