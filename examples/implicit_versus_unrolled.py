"""The same model trained by implicit differentiation and by unrolling 1, 5 or 20 steps: one argument.

Each model is trained from the same start on scikit-learn's digits. Then, at the weights of the implicit training, the
gradient of each way is compared with the implicit one, and the memory that its forward pass holds for the backward pass
is counted. The implicit gradient is exact up to the solver's tolerance.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import implicit_bregman as ib

ADJOINTS = {"implicit": "implicit"} | {f"unrolled {steps}": ib.adjoints.Unrolled(steps=steps) for steps in (1, 5, 20)}


def digits() -> list[torch.Tensor]:
    """Training inputs, test inputs, training labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 8 - 1, labels, test_size=360, stratify=labels, random_state=0)
    return [torch.as_tensor(part) for part in parts]


def train(adjoint: str | ib.adjoints.Adjoint, x: torch.Tensor, labels: torch.Tensor, epochs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(ib.BregmanDEQ(64, 32, "tanh", adjoint=adjoint), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
    return model


def gradient_and_memory(model: nn.Sequential, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The gradient with respect to all parameters, as one vector, and the kB that autograd saved for it."""
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model(x), labels)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 1000
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]), kept


def main() -> None:
    torch.set_default_dtype(torch.float64)
    x_train, x_test, labels_train, labels_test = digits()
    models = {name: train(adjoint, x_train, labels_train) for name, adjoint in ADJOINTS.items()}

    print(f"{'training by':<12}{'accuracy [%]':>14}{'gradient error':>16}{'memory [kB]':>13}")
    judge, batch, labels = models["implicit"], x_train[:64].clone(), labels_train[:64].clone()
    exact, _ = gradient_and_memory(judge, batch, labels)
    for name, model in models.items():
        with torch.no_grad():
            accuracy = (model(x_test).argmax(-1) == labels_test).double().mean()
        judge[0].adjoint = ADJOINTS[name]
        gradient, kept = gradient_and_memory(judge, batch, labels)
        error = (gradient - exact).norm() / exact.norm()
        print(f"{name:<12}{100 * accuracy:>14.1f}{error:>16.2f}{kept:>13.0f}")


if __name__ == "__main__":
    main()
