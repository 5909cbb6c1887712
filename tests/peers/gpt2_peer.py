"""GPT-2 training: Ergon and PyTorch from the same weights on the same tokens.

    python3 -m venv peers && peers/bin/pip install torch numpy safetensors
    peers/bin/python tests/peers/gpt2_peer.py --bench build/cpu/bench/gpt2_train_bench --size 124M --batch 4 --seqlen 256

Checks that the losses agree within 1e-4 relative, and prints the median over rounds of the ratio of tokens per second
(rounds alternate between the two programs, so that a slow machine slows both), and both peaks of memory.
PyTorch: eager, fp32, fused AdamW, the threads that OMP_NUM_THREADS names.

With --precision bf16 (or f16) both programs run in their autocast scopes (torch.autocast("cpu")), and once in fp32: checks
that the losses agree within 2e-2 relative, and that Ergon's are as close to the fp32 curve as PyTorch's, or closer.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {"124M": (768, 12, 12, 50257, 1024), "1M": (128, 4, 4, 256, 256)}


def torch_side(args):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    width, layers, heads, _, _ = SHAPES[args.size]

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1 = torch.nn.LayerNorm(width)
            self.c_attn = torch.nn.Linear(width, 3 * width)
            self.attn_proj = torch.nn.Linear(width, width)
            self.ln_2 = torch.nn.LayerNorm(width)
            self.c_fc = torch.nn.Linear(width, 4 * width)
            self.mlp_proj = torch.nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (h.view(b, t, heads, c // heads).transpose(1, 2) for h in self.c_attn(self.ln_1(x)).split(c, dim=2))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_proj(o.transpose(1, 2).reshape(b, t, c))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class Model(torch.nn.Module):
        def __init__(self, vocab, context):
            super().__init__()
            self.wte = torch.nn.Embedding(vocab, width)
            self.wpe = torch.nn.Embedding(context, width)
            self.h = torch.nn.ModuleList(Block() for _ in range(layers))
            self.ln_f = torch.nn.LayerNorm(width)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    names = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    state = {}
    for name, tensor in load_file(os.path.join(args.dir, "model.safetensors")).items():
        name = name.removeprefix("transformer.")
        for theirs, ours in names.items():
            if theirs in name:
                name = name.replace(theirs, ours)
                if name.endswith("weight"):  # Conv1D keeps (in, out)
                    tensor = tensor.t().contiguous()
        state[name] = tensor
    model = Model(state["wte.weight"].shape[0], state["wpe.weight"].shape[0])
    model.load_state_dict(state)

    decay = [p for p in model.parameters() if p.dim() >= 2]
    no_decay = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    tokens = load_file(os.path.join(args.dir, "tokens.safetensors"))["tokens"].long()
    low = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[args.precision]
    losses, milliseconds = [], []
    for window in tokens[: args.steps]:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=low or torch.bfloat16, enabled=low is not None):
            loss = model(window[:, :-1], window[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        milliseconds.append(1e3 * (time.perf_counter() - start))
    median = statistics.median(milliseconds[1:] if len(milliseconds) > 2 else milliseconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms_per_step": median, "tokens_per_second": 1e3 * args.batch * args.seqlen / median,
                      "peak_rss_mib": peak, "losses": losses, "version": torch.__version__}))


def run(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def relative_differences(losses, reference):
    return [abs(a - b) / abs(b) for a, b in zip(losses, reference)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="the gpt2_train_bench program")
    parser.add_argument("--size", default="124M", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16", "f16"])
    parser.add_argument("--dir", help="a folder for weights and tokens")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        torch_side(args)
        return 0

    folder = args.dir or tempfile.mkdtemp(prefix="ergon-gpt2-")
    shape = ["--size", args.size, "--batch", str(args.batch), "--seqlen", str(args.seqlen), "--steps", str(args.steps),
             "--dir", folder]
    subprocess.run([args.bench, *shape, "--save"], check=True)
    low = args.precision != "f32"
    if low:
        exact = run([args.bench, *shape])["losses"]
    shape += ["--precision", args.precision]
    ratios, memory = [], []
    for number in range(args.rounds):
        ours = run([args.bench, *shape])
        theirs = run([sys.executable, __file__, "--torch", *shape])
        ratios.append(ours["tokens_per_second"] / theirs["tokens_per_second"])
        memory.append(ours["peak_rss_mib"] / theirs["peak_rss_mib"])
        print(f"round {number + 1}: Ergon {ours['ms_per_step']:.1f} ms/step, {ours['peak_rss_mib']:.0f} MiB; "
              f"PyTorch {theirs['version']} {theirs['ms_per_step']:.1f} ms/step, {theirs['peak_rss_mib']:.0f} MiB; "
              f"tokens/s ratio {ratios[-1]:.2f}")
        worst, most = max(relative_differences(ours["losses"], theirs["losses"])), 2e-2 if low else 1e-4
        if not worst <= most:
            print(f"losses differ: relative {worst:.2e}, expected at most {most}\n{ours['losses']}\n{theirs['losses']}")
            return 1
    if low:
        our_error, their_error = (relative_differences(side["losses"], exact) for side in (ours, theirs))
        print(f"off the fp32 curve, mean and largest: Ergon {statistics.mean(our_error):.1e}, {max(our_error):.1e}; "
              f"PyTorch {statistics.mean(their_error):.1e}, {max(their_error):.1e}")
        if statistics.mean(our_error) > statistics.mean(their_error):
            print("Ergon is further from the fp32 curve than PyTorch")
            return 1
    print(f"median tokens/s ratio {statistics.median(ratios):.2f}, memory ratio {statistics.median(memory):.2f}, "
          f"{len(ours['losses'])} losses agree within {worst:.1e} relative")
    return 0


if __name__ == "__main__":
    sys.exit(main())
