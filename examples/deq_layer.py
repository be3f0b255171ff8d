"""A deep-equilibrium layer in a PyTorch model, trained on scikit-learn's digits.

The layer's output is a critical point of a learned objective, and the gradient is taken there by implicit
differentiation: no step of the solver is stored. Every call leaves a `Solution` behind, which says for each sample how
the solve ended.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import implicit_bregman as ib

EPOCHS = 5


def digits() -> list[torch.Tensor]:
    """Training inputs, test inputs, training labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 8 - 1, labels, test_size=360, stratify=labels, random_state=0)
    return [torch.as_tensor(part) for part in parts]


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    x_train, x_test, labels_train, labels_test = digits()

    layer = ib.BregmanDEQ(64, 32, geometry="tanh")  # the representation lies in [-1, 1]^32
    model = nn.Sequential(layer, nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(x_train)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x_train[batch]), labels_train[batch])
            loss.backward()
            optimizer.step()
        with torch.no_grad(), layer.frozen():  # keeps the factorization of W from call to call
            accuracy = (model(x_test).argmax(-1) == labels_test).double().mean()
        print(f"epoch {epoch}: test accuracy {100 * accuracy:.1f} %")

    solution = layer.last_solution  # of the whole test set
    print(solution)
    print(solution.message)
    on_a_bound = (solution.value.abs() == 1).double().mean()
    print(f"coordinates of z on a bound: {100 * on_a_bound:.0f} %")


if __name__ == "__main__":
    main()
