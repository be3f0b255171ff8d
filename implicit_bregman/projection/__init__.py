"""The Bregman projection onto {z ∈ C : Vᵀz = β}: the low-rank energy, solved and differentiated in r dimensions.

basis     the range of V
problem   the dual problem in r unknowns, for which `newton` finds the minimiser
map_problem  the same for V a linear map, of which `sinkhorn` begins that of a transport plan
solve     what MM's limit is, and its status
adjoint   its derivative, through `system`, and `error`, how far that may be off
methods   all of it as the energy hands it to solvers and adjoints
energy    f = ½‖Vᵀz − β‖² at a fixed input, and `weight`, its parametrization

`map_adjoint`, `map_methods` and `constraints` are the last three for V a linear map. `differentiable`, the derivatives
of every order, serves both.
"""
