"""A network's parameters by depth: for learning rates that fall towards the images, and for freezing."""

from collections.abc import Iterator

from torch import nn

NEARLY_ALL = 0.8
"""Share of the parameters that no single block has: what has more holds several."""


def blocks(network: nn.Module) -> list[list[nn.Parameter]]:
    """Split all parameters of a network into blocks, from the images to the logits.

    Found from the order in which modules were registered, for any network: what only holds others, one after
    the other, and whatever has nearly all parameters, is taken apart; what is left is a block: a
    residual block, a transformer layer, a stem's convolution, the head's linear layer. Norms belong to the
    block before them; parameters beside modules, such as a position embedding, to the first.

    Args:
        network: whose modules are registered in the order in which they are used.

    Returns:
        At least one parameter a block. The last block is the head.
    """
    total = sum(parameter.numel() for parameter in network.parameters())
    loose: list[nn.Parameter] = []
    found: list[list[nn.Parameter]] = [[]]
    seen: set[nn.Parameter] = set()  # one that is used twice belongs where it is used first
    for module in _parts(network, total, loose):
        new = [parameter for parameter in module.parameters() if parameter not in seen]
        seen |= set(new)
        if found[-1] and any(parameter.ndim > 1 for parameter in new):
            found.append([])
        found[-1] += new
    found[0] = [parameter for parameter in loose if parameter not in seen] + found[0]
    return [block for block in found if block]


def _parts(module: nn.Module, total: int, loose: list[nn.Parameter]) -> Iterator[nn.Module]:
    """Yield the modules that are not taken apart; collect in `loose` the parameters of the others."""
    size = sum(parameter.numel() for parameter in module.parameters())
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    if not children or not (_only_holds(module, children) or size > NEARLY_ALL * total):
        yield module
        return
    loose.extend(module.parameters(recurse=False))
    for child in children:
        yield from _parts(child, total, loose)


def _only_holds(module: nn.Module, children: list[nn.Module]) -> bool:
    """Whether a module is a sequence of others. One of a derived class may be a block, such as a convolution
    with its norm, unless all that it holds are alike.
    """
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return type(module) in (nn.Sequential, nn.ModuleList) or (alike and isinstance(module, nn.Sequential))
