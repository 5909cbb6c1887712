"""A step of the optimisers over the parameters of a GPT-2: Ergon and PyTorch.

    python3 -m venv peers && peers/bin/pip install torch
    peers/bin/python tests/peers/optim_peer.py --bench build/cpu/bench/optim_bench --size 124M

Prints the median over rounds of the ratio of times (rounds alternate between the two programs). PyTorch: fp32 on the
CPU, its fused AdamW and SGD, clip_grad.get_total_norm, the threads that OMP_NUM_THREADS names.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = {"124M": (768, 12, 50257, 1024), "1M": (128, 4, 256, 256)}


def torch_side(size):
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    width, layers, vocab, context = SHAPES[size]
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,), (width,), (width,),
             (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    shapes = [(vocab, width), (context, width), *block * layers, (width,), (width,)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)

    def median_seconds(function):
        times = []
        for _ in range(32):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])

    adamw = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.1, fused=True)
    sgd = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=True)
    print(json.dumps({"adamw": median_seconds(adamw.step), "sgd_momentum": median_seconds(sgd.step),
                      "grad_norm": median_seconds(
                          lambda: torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())}))


def run(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="the optim_bench program")
    parser.add_argument("--size", default="124M", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return torch_side(args.size)
    rounds = [(run([args.bench, "--size", args.size]), run([sys.executable, __file__, "--torch", "--size", args.size]))
              for _ in range(args.rounds)]
    for name in rounds[0][0]:
        ours, theirs = (statistics.median(side[name] for side in sides) for sides in zip(*rounds))
        ratio = statistics.median(b[name] / a[name] for a, b in rounds)
        print(f"{name}: Ergon {1e3 * ours:.3f} ms, PyTorch {1e3 * theirs:.3f} ms, speed ratio {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
