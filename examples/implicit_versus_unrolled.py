"""Implicit or unrolled

One argument, `adjoint`, decides how a layer is differentiated. The same model learns
scikit-learn's digits by implicit differentiation and through unrolled steps. Accuracy
after so short a training does not tell the ways apart. Gradients and memory do.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicit_bregman as ib

torch.set_default_dtype(torch.float64)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
x, x_test = (images / 8 - 1).split([1437, 360])
y, y_test = labels.split([1437, 360])
adjoints = {"implicit": "implicit"}
adjoints |= {f"L = {steps}": ib.adjoints.Unrolled(steps=steps) for steps in (1, 5, 20)}


def train(adjoint: str | ib.adjoints.Adjoint) -> nn.Sequential:
    torch.manual_seed(0)
    layer = ib.BregmanDEQ(64, 32, "tanh", adjoint=adjoint)
    model = nn.Sequential(layer, nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for batch in [part for _ in range(3) for part in torch.randperm(1437).split(64)]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


# %% Gradient and memory
# All are taken at the weights of the implicit training. Memory is what autograd keeps
# between the forward and the backward pass.
models = {name: train(adjoint) for name, adjoint in adjoints.items()}
judge, gradients, kept = models["implicit"], [], []
for adjoint in adjoints.values():
    judge[0].adjoint, saved = adjoint, {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t, saved=saved: saved.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
    ):
        loss = nn.functional.cross_entropy(judge(x[:64]), y[:64])
    grads = torch.autograd.grad(loss, judge.parameters())
    gradients.append(nn.utils.parameters_to_vector(grads))
    kept.append(sum(saved.values()) / 1000)
errors = [float((g - gradients[0]).norm() / gradients[0].norm()) for g in gradients]
for name, error, memory in zip(adjoints, errors, kept, strict=True):
    right = (models[name](x_test).argmax(-1) == y_test).double().mean()
    print(f"{name}: accuracy {100 * right:.1f} %, error {error:.2f}, {memory:.0f} kB")

# %% Figure
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, bars in zip(axes, (errors, kept), strict=True):
    axis.bar(list(adjoints), bars)
axes[0].set(ylabel="relative error of the gradient")
axes[1].set(ylabel="memory for the backward pass [kB]")
figure.savefig("implicit_versus_unrolled.png")
