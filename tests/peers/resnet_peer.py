"""ResNet training: Ergon and PyTorch from the same weights on the same images.

    python3 -m venv peers && peers/bin/pip install torch numpy safetensors
    peers/bin/python tests/peers/resnet_peer.py --bench build/cpu/bench/resnet_bench --depth 8 --width 16 --batch 128

Checks that the losses agree, within 1e-4 relative for the first steps and 1e-2 for all (batch normalisation on random
labels amplifies rounding), and prints the median over rounds of the ratio of images per second (rounds alternate
between the two programs, so that a slow machine slows both). On a machine that does other things too, CPU time with
OMP_NUM_THREADS=1 says more: it leaves out waiting.
PyTorch: eager, fp32, fused AdamW, contiguous or (--channels-last) channels-last, the threads of OMP_NUM_THREADS.
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


def torch_side(args):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from safetensors.torch import load_file

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential()
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))

    class Model(nn.Module):
        def __init__(self, width, blocks):
            super().__init__()
            self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            channels = width
            for stage in range(3):
                outputs = width << stage
                layers = [Block(channels if i == 0 else outputs, outputs, 2 if stage > 0 and i == 0 else 1)
                          for i in range(blocks)]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
                channels = outputs
            self.fc = nn.Linear(channels, 10)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(x.mean((2, 3)))

    model = Model(args.width, (args.depth - 2) // 6)
    model.load_state_dict(load_file(os.path.join(args.dir, "model.safetensors")))
    data = load_file(os.path.join(args.dir, "data.safetensors"))
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.05},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, fused=True)
    losses, milliseconds, cpu = [], [], []
    for images, targets in zip(data["images"][: args.steps], data["targets"].long()):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = F.cross_entropy(model(images.to(memory_format=layout)), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        milliseconds.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - cpu_start))
    median = statistics.median(milliseconds[1:] if len(milliseconds) > 2 else milliseconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms_per_step": median, "images_per_second": 1e3 * args.batch / median, "peak_rss_mib": peak,
                      "cpu_ms_per_step": statistics.median(cpu[1:] if len(cpu) > 2 else cpu), "losses": losses, "version": torch.__version__}))


def run(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="the resnet_bench program")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--dir", help="a folder for weights and images")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        torch_side(args)
        return 0

    folder = args.dir or tempfile.mkdtemp(prefix="ergon-resnet-")
    shape = ["--depth", str(args.depth), "--width", str(args.width), "--batch", str(args.batch), "--steps",
             str(args.steps), "--dir", folder]
    layout = ["--channels-last"] if args.channels_last else []
    subprocess.run([args.bench, *shape, "--save"], check=True)
    ratios, cpu_ratios, memory = [], [], []
    for number in range(args.rounds):
        ours = run([args.bench, *shape])
        theirs = run([sys.executable, __file__, "--torch", *shape, *layout])
        ratios.append(ours["images_per_second"] / theirs["images_per_second"])
        cpu_ratios.append(theirs["cpu_ms_per_step"] / ours["cpu_ms_per_step"])
        memory.append(ours["peak_rss_mib"] / theirs["peak_rss_mib"])
        print(f"round {number + 1}: Ergon {ours['ms_per_step']:.1f} ms/step, {ours['peak_rss_mib']:.0f} MiB; "
              f"PyTorch {theirs['version']} {theirs['ms_per_step']:.1f} ms/step, {theirs['peak_rss_mib']:.0f} MiB; "
              f"images/s ratio {ratios[-1]:.2f}; CPU time a step {ours['cpu_ms_per_step']:.1f} and "
              f"{theirs['cpu_ms_per_step']:.1f} ms, ratio {cpu_ratios[-1]:.2f}")
        errors = [abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"])]
        if not (max(errors[:3]) <= 1e-4 and max(errors) <= 1e-2):
            print(f"losses differ: relative {max(errors[:3]):.2e} (first three), {max(errors):.2e}, expected at most 1e-4 "
                  f"and 1e-2\n{ours['losses']}\n{theirs['losses']}")
            return 1
    print(f"median images/s ratio {statistics.median(ratios):.2f}, CPU time ratio {statistics.median(cpu_ratios):.2f}, "
          f"memory ratio {statistics.median(memory):.2f}, "
          f"losses agree within {max(errors[:3]):.1e} (first three steps) and {max(errors):.1e} (all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
