"""Attention, forward and backward: Ergon and PyTorch's scaled_dot_product_attention on the CPU.

    python3 -m venv peers && peers/bin/pip install torch
    OMP_NUM_THREADS=2 peers/bin/python tests/peers/attention_peer.py --bench build/cpu/bench/attention_bench --seqlen 2048

Rounds alternate between the two programs; prints the medians and the median of the rounds' ratios. fp32, causal. Memory
is what a process takes beyond operands, result and gradients, of Ergon's operator and of the same composed of matrix
products and a softmax (--memory).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def torch_side(args):
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    shape = (args.batch, args.seqlen, args.heads, args.head_dim)
    q, k, v = (torch.randn(shape).requires_grad_() for _ in range(3))
    dout = torch.randn(shape)
    forward, both = [], []
    for _ in range(args.repetitions + 1):
        start = time.perf_counter()
        heads_first = [t.transpose(1, 2) for t in (q, k, v)]
        o = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)
        middle = time.perf_counter()
        o.backward(dout)
        both.append(1e3 * (time.perf_counter() - start))
        forward.append(1e3 * (middle - start))
        q.grad = k.grad = v.grad = None
    print(json.dumps({"forward_ms": statistics.median(forward[1:]), "forward_backward_ms": statistics.median(both[1:])}))


def run(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="the attention_bench program")
    sizes = ("batch", 1), ("seqlen", 2048), ("heads", 12), ("head-dim", 64), ("repetitions", 5)
    for name, default in sizes:
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="also run the composed form, for its memory")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return torch_side(args)
    options = [text for name, _ in sizes for text in ("--" + name, str(getattr(args, name.replace("-", "_"))))]
    rounds = [(run([args.bench, *options]), run([sys.executable, __file__, "--torch", *options]))
              for _ in range(args.rounds)]
    for name in "forward_ms", "forward_backward_ms":
        ours, theirs = (statistics.median(side[name] for side in sides) for sides in zip(*rounds))
        ratios = sorted(b[name] / a[name] for a, b in rounds)
        print(f"{name}: Ergon {ours:.2f}, PyTorch {theirs:.2f}, speed ratio {statistics.median(ratios):.2f} "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if args.memory:
        composed = run([args.bench, *options, "--composed"])["extra_mib"]
        ours = rounds[0][0]["extra_mib"]
        print(f"extra memory: Ergon {ours:.1f} MiB, composed {composed:.1f} MiB, ratio {ours / composed:.3f}")


if __name__ == "__main__":
    sys.exit(main())
