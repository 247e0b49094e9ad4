"""What the suite has PyTorch do: steps a second of three kinds of work, and what memory it sees."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 4.0


def rate(step: Callable[[], Any]) -> float:
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        count += 5
    return count / (time.perf_counter() - began)


def network() -> Any:
    try:
        from torchvision.models import resnet50

        return resnet50().cuda()
    except ImportError:
        layers = [torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU()]
        for _ in range(16):
            layers += [torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU()]
        layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 1000)]
        return torch.nn.Sequential(*layers).cuda()


def training() -> Callable[[], None]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(32, 3, 224, 224, device="cuda")
    labels = torch.randint(0, 1000, (32,), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def replay() -> Callable[[], None]:
    matrix = torch.randn(512, 512, device="cuda")
    torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product = matrix
        for _ in range(50):
            product = torch.mm(product, matrix)
    return lambda: graph.replay()


matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
_, total = torch.cuda.mem_get_info()
print(
    json.dumps(
        {
            "total": torch.cuda.get_device_properties(0).total_memory,
            "mem_get_info_total": total,
            "rates": {
                "matmul": rate(lambda: torch.mm(matrix, matrix)),
                "training step": rate(training()),
                "graph replay": rate(replay()),
            },
        }
    )
)
