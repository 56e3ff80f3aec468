"""Parser that turns HTML pages into trees of nodes, for checks of their content."""

from html.parser import HTMLParser

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Node:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Node] = []
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, class_: str = "") -> list["Node"]:
        """Return all descendants with this tag and class, in document order."""
        found = []
        for child in self.children:
            classes = (child.attributes.get("class") or "").split()
            if child.tag == tag and (not class_ or class_ in classes):
                found.append(child)
            found += child.all(tag, class_)
        return found


class Page(HTMLParser):
    """HTML document as a tree of nodes; unbalanced tags raise an AssertionError."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [node.tag for node in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, ([node.tag for node in self._open], tag)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for node in self._open:
            node.texts.append(data)

    def everything(self) -> list[Node]:
        def below(node: Node) -> list[Node]:
            return [one for child in node.children for one in (child, *below(child))]

        return below(self.root)

    def section(self, title: str) -> Node:
        """Return the section with this heading."""
        (found,) = (
            node for node in self.root.all("section") if node.all("h2") and node.all("h2")[0].text == title
        )
        return found

    def titles(self) -> list[str]:
        return [node.text for node in self.root.all("h2")]


def rows(table: Node) -> list[dict[str, str]]:
    """Return the rows of a table as dicts from column heading to cell text."""
    head, body = table.all("thead")[0], table.all("tbody")[0]
    names = [cell.text for cell in head.all("th")]
    found = []
    for row in body.all("tr"):
        cells = [child.text for child in row.children]
        assert len(cells) == len(names)
        found.append(dict(zip(names, cells, strict=True)))
    return found
