"""A layer in a model

`BregmanDEQ` is an `nn.Module` like any other. Its output is a critical point of a
learned objective. Backpropagation differentiates that point; it stores no step of the
solver. Here the layer learns scikit-learn's digits.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import implicit_bregman as ib

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
images, labels = load_digits(return_X_y=True)
parts = train_test_split(images / 8 - 1, labels, test_size=360, random_state=0)
x_train, x_test, y_train, y_test = map(torch.as_tensor, parts)

# %% Train
# The representation lies in [-1, 1]³². `frozen` keeps the factorization of W from one
# call to the next while the weights stay the same.
layer = ib.BregmanDEQ(64, 32, geometry="tanh")
model = nn.Sequential(layer, nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
accuracies = []
for epoch in range(1, 6):
    for batch in torch.randperm(len(x_train)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()
    with torch.no_grad(), layer.frozen():
        right = (model(x_test).argmax(-1) == y_test).double().mean()
    accuracies.append(100 * right)
    print(f"epoch {epoch}: test accuracy {accuracies[-1]:.1f} %")

# %% What was solved
# Every call leaves a `Solution` behind. It says for each sample how the solve ended.
solution = layer.last_solution
print(solution)
print(solution.message)
on_a_bound = (solution.value.abs() == 1).double().mean()
print(f"coordinates of z on a bound: {100 * on_a_bound:.0f} %")

# %% Figure
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(range(1, 6), accuracies, "o-")
left.set(xlabel="epoch", ylabel="test accuracy [%]", xticks=range(1, 6))
right.hist(solution.value.flatten().numpy(), bins=41)
right.set(xlabel="coordinate of z", ylabel="how many")
figure.savefig("deq_layer.png")
