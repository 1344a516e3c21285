"""What a run imports: PyTorch's compiler and its system for algebra take seconds, and a run has no need of them."""

import subprocess
import sys

CODE = """
import sys, torch
from torch import nn
from torch.utils.data import TensorDataset
from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query, Shift, Stage, trace
from stagetrace.objectives import Classification

torch.manual_seed(0)
pixels, labels = torch.randn(20, 1, 6, 6), torch.arange(20) % 3
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))
chain = Chain(Stage("only", model=model, objective=Classification(), data=TensorDataset(pixels, labels)))
query = Query(TensorDataset(pixels[:4], labels[:4]))
settings = {
    "default": {},
    "hessian": {"curvature": Hessian(), "solver": Lanczos(0.1)},
    "in little memory": {"curvature": GaussNewton(memory=1), "solver": Lanczos(0.1, filter=Shift)},
}
for name, chosen in settings.items():
    trace(chain, query, **chosen)
    heavy = [module for module in ("torch._dynamo", "sympy") if module in sys.modules]
    if heavy:
        sys.exit(f"{name}: imported {heavy}")
"""


def test_a_run_imports_no_compiler():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
