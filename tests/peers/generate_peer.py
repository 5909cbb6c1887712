"""PyTorch's tokens/s where examples/generate is measured: GPT-2 124M's shape with a vocabulary of bytes, greedy, eager.

    python3 -m venv peers && peers/bin/pip install torch
    OMP_NUM_THREADS=2 peers/bin/python tests/peers/generate_peer.py --prompt 900 --tokens 100 --rounds 4

Random weights and a bare loop with a cache of keys and values made beforehand: the least that PyTorch needs.
"""

import argparse
import time

import torch
import torch.nn.functional as F

LAYERS, HEADS, WIDTH, CONTEXT, VOCAB = 12, 12, 768, 1024, 256


class Layer:
    def __init__(self):
        self.norms = [(torch.ones(WIDTH), torch.zeros(WIDTH)) for _ in range(2)]
        shapes = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
        self.qkv, self.proj, self.up, self.down = ((0.02 * torch.randn(s), torch.zeros(s[0])) for s in shapes)
        self.k, self.v = (torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS) for _ in range(2))

    def __call__(self, x, first):
        seqlen, end = x.shape[1], first + x.shape[1]
        qkv = F.linear(F.layer_norm(x, (WIDTH,), *self.norms[0]), *self.qkv).split(WIDTH, 2)
        q, k, v = (t.view(1, seqlen, HEADS, -1).transpose(1, 2) for t in qkv)
        self.k[:, :, first:end], self.v[:, :, first:end] = k, v
        o = F.scaled_dot_product_attention(q, self.k[:, :, :end], self.v[:, :, :end], is_causal=seqlen > 1)
        x = x + F.linear(o.transpose(1, 2).reshape(1, seqlen, WIDTH), *self.proj)
        hidden = F.linear(F.layer_norm(x, (WIDTH,), *self.norms[1]), *self.up)
        return x + F.linear(F.gelu(hidden, approximate="tanh"), *self.down)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=900)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokens, positions = 0.02 * torch.randn(VOCAB, WIDTH), 0.02 * torch.randn(CONTEXT, WIDTH)
    norm = torch.ones(WIDTH), torch.zeros(WIDTH)
    layers = [Layer() for _ in range(LAYERS)]

    def next_token(text, first):
        x = tokens[text] + positions[first : first + text.shape[1]]
        for layer in layers:
            x = layer(x, first)
        return F.linear(F.layer_norm(x[:, -1], (WIDTH,), *norm), tokens).argmax(-1, keepdim=True)

    for _ in range(args.rounds):
        start = time.perf_counter()
        token = next_token(torch.randint(0, VOCAB, (1, args.prompt)), 0)
        reading = time.perf_counter() - start
        for i in range(args.tokens - 1):
            token = next_token(token, args.prompt + i)
        others = time.perf_counter() - start - reading
        print(f"the first after {reading:.2f} s, then {(args.tokens - 1) / others:.1f} tokens/s")


main()
