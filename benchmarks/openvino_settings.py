"""Time OpenVINO's float32 with other settings, and tell how much of its time the matrix products take.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/openvino_settings.py        # S/2 and B/4, one image with guidance

Every row computes the network alone, without scheduler, on twice as many rows of tokens as there are images. "static"
fixes the shapes of the graph before it is compiled, as the export cannot do, which serves every batch and size; the
other rows change a setting of OpenVINO. Each round runs every row once, and the fastest counts. Times are those that
the processor spent on this process. The line below a table says what share of OpenVINO's own time its products take:
no setting that leaves these as they are can be faster than that share.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from runtimes import describe_machine
from sampling import make_model
from torch import Tensor

from dit_hf.runtime.export import without_notes_of_exporters
from dit_hf.runtime.graphs import dit_programs, in_float32, tensors_of
from dit_hf.runtime.openvino_ir import _converted, _core

Run = Callable[[], Tensor]
SETTINGS: dict[str, dict[str, Any]] = {
    "openvino": {},
    "openvino, static": {},
    "openvino, throughput": {"PERFORMANCE_HINT": "THROUGHPUT"},
    "openvino, one stream": {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False},
}


def request(graph: Any, **settings: Any) -> Any:
    """Compile a graph as `OpenVino.load` does, but for the settings given."""
    common = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return _core().compile_model(graph, "CPU", {**common, **settings}).create_infer_request()


def share_of_products(graph: Any, arrays: list[Any]) -> float:
    """Return which share of the time of OpenVINO's operators is that of its matrix products."""
    watched = request(graph, PERF_COUNT=True)
    for _ in range(2):  # the first prepares the weights
        watched.infer(arrays, share_inputs=True)
    seconds = [(each.node_type, each.real_time.total_seconds()) for each in watched.profiling_info]
    return sum(own for kind, own in seconds if kind == "FullyConnected") / sum(own for _, own in seconds)


@torch.no_grad()
def compare(name: str, num_images: int, rounds: int) -> None:
    """Print a line for each row, and the share of the products."""
    model = make_model(name).to("cpu", torch.float32)
    rows = 2 * num_images
    x = torch.randn(rows, model.config.in_channels, *model.config.sample_height_width)
    conditioning = model.condition(torch.full((rows,), 500.0), torch.arange(rows))
    positions = in_float32(model.positions())
    arrays = [each.contiguous().numpy() for each in (x, *tensors_of(conditioning), *tensors_of(positions))]
    with without_notes_of_exporters():
        graph = _converted(dit_programs(model)["denoise"])
    static = graph.clone()
    static.reshape({place: list(array.shape) for place, array in zip(static.inputs, arrays, strict=True)})

    runs: dict[str, Run] = {"eager": lambda: model(x, conditioning=conditioning, positions=positions).sample}
    compiling = {}
    for row, settings in SETTINGS.items():
        begin = time.process_time()
        ready = request(static if "static" in row else graph, **settings)
        compiling[row] = f"{time.process_time() - begin:.1f}"
        runs[row] = lambda ready=ready: torch.from_numpy(ready.infer(arrays, share_inputs=True)[0])
    outputs = {row: run() for row, run in runs.items()}
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for row, run in runs.items():
            begin = time.process_time()
            run()
            least[row] = min(least[row], time.process_time() - begin)
    for row, seconds in least.items():
        error = ((outputs[row] - outputs["eager"]).norm() / outputs["eager"].norm()).item()
        cells = f"{compiling.get(row, '-')} | {1000 * seconds:.0f} | {least['eager'] / seconds:.2f} | {error:.1e}"
        print(f"| {name} | {num_images} | {row} | {cells} |", flush=True)
    print(f"\n{name}: products take {share_of_products(graph, arrays):.0%} of OpenVINO's time\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--sizes", nargs="+", default=["DiT-S/2", "DiT-B/4"], help="Names of the paper's models.")
    parser.add_argument("--images", type=int, default=1, help="Number of images.")
    arguments = parser.parse_args()
    print(describe_machine() + "\n")
    heads = ("model", "images", "computed by", "compiling, s", "ms", "times faster", "relative error")
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for name in arguments.sizes:
        compare(name, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
