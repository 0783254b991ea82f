"""Parser of HTML pages for tests."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements without an end tag, and SVG elements that may have none.
VOID = {"meta", "img", "br"}


@dataclass
class Element:
    """An element with its attributes and its text."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """Return the elements with a tag at any depth, in the order of the page."""
        own = [self] if self.tag == tag else []
        return own + [found for child in self.children for found in child.all(tag)]

    def by_id(self, name: str) -> "Element":
        """Return the element with an id."""
        [found] = [one for one in self.walk() if one.attributes.get("id") == name]
        return found

    def walk(self) -> list["Element"]:
        """Return this element and all its descendants."""
        return [self, *(found for child in self.children for found in child.walk())]


class Page(HTMLParser):
    """A page as a tree; elements that are not closed are an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("page", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], f"not closed: {[one.tag for one in self._open[1:]]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"{tag} ends inside {self._open[-1].tag}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


def cells(table: Element) -> list[list[str]]:
    """Return the rows of a table as text, headings first."""
    return [
        [cell.text.strip() for cell in row.children if cell.tag in ("td", "th")]
        for row in table.all("tr")
    ]
