"""Sphinx extension: what the pages need beyond what the theme and its extensions write.

Jupyter Book loads it by `_config.yml`. Each part says which fault it mends; tests/browser acts on
the result. Most parts are small because the theme's templates stay: :class:`Templates` mends the
HTML that they give.
"""

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import book_files
from docutils import nodes
from PIL import Image
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.jinja2glue import BuiltinTemplateLoader
from sphinx.transforms import SphinxTransform

# An address that nobody can register stands in _config.yml until the book has one of its own:
# what leads there is left out of the pages, except for the setup cells, which are code.
PLACEHOLDER = "your_name"

# Loaded into every page by Jupyter Book; no page has what they are for. sphinx-thebe's script is
# even written twice, and fails the second time.
UNUSED = ("sphinx-thebe", "thebe_selector", "design-tabs.js", "sphinx-design.min.css")

# Which parts of MathJax a page loads; book_files.py copies them.
MATHJAX_CONFIG = {
    "loader": {"load": ["input/tex-base", "[tex]/ams", "output/chtml", "a11y/assistive-mml"]},
    "tex": {"packages": ["base", "ams"]},
}

NUMBER = re.compile(r"[-−+±~≈<>≤≥]?\s?\d[\d,.\s–-]*(%|ms|s|[kM]B|×)?")


# --- The HTML of a page ------------------------------------------------------------------------

MENDS: list[tuple[str, str]] = [
    # Both sidebar buttons were dead: the theme's script takes the first button of a kind, and found
    # the one in a header that a book does not show. The script still wants to know its height.
    (
        r'<header id="pst-header".*?</header>',
        r'<div id="pst-header" class="bd-header" hidden></div>',
    ),
    # 1.5 MB that draw the icons a second time: the theme's stylesheet has them as a font.
    (r'<script defer src="[^"]*fontawesome\.js[^"]*"></script>', ""),
    # Said twice, three times.
    (r'<meta name="viewport" content="width=device-width, initial-scale=1" ?/>', ""),
    (r"<title>(.*?) &#8212; \1</title>", r"<title>\1</title>"),
    # Names of controls: what one sees and what a screen reader says are the same words.
    (r'(<button class="btn search-button-field[^>]*) aria-label="Search"', r"\1"),
    (r'title="Toggle primary sidebar"', 'title="Chapters" aria-label="Chapters"'),
    (r'title="Toggle secondary sidebar"', 'title="On this page" aria-label="On this page"'),
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # The logo and the search button belong to a landmark, as the list of chapters does.
    (r'<div id="pst-primary-sidebar"', r'\g<0> role="region" aria-label="Book"'),
    # A list has items; the role that docutils gives an entry is no item, and deprecated.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # An empty corner of a table is no heading.
    (r'<th class="[^"]*"><p></p></th>', "<td></td>"),
    (r"(<table class=dataframe><tr>)<th></th>", r"\1<td></td>"),
    # No line begins with the comma or the full stop after a formula.
    (
        r'(<span class="math notranslate nohighlight">[^<]*</span>)([,.;:?!)’”]+)',
        r'<span class="unbroken">\1\2</span>',
    ),
]

# Each player brings its style and its script along, for places that show one at a time.
PLAYER_END = r"\n<style>[^<]*</style>\n<script>(?:(?!</script>).)*</script>\n</figure>"


class Templates(BuiltinTemplateLoader):
    """The theme's templates, their HTML mended: Sphinx's `template_bridge`."""

    def render(self, template: str, context: dict[str, Any]) -> str:  # type: ignore[override]
        """The HTML of one page."""
        page = super().render(template, context)
        if "</head>" not in page:
            return page  # a piece of the theme's, on its way into a page
        for pattern, replacement in MENDS:
            page = re.sub(pattern, replacement, page, flags=re.DOTALL)
        if context.get("pagename") != "search":  # the whole index of words, for that page alone
            page = re.sub(
                r'<script src="[^"]*(searchtools|language_data|searchindex)\.js"></script>',
                "",
                page,
            )
        # The last player's script draws all of them, in the style that the last one brings.
        for tail in set(re.findall(PLAYER_END, page, flags=re.DOTALL)):
            page = page.replace(tail, "\n</figure>", page.count(tail) - 1)
        return page.replace("</head>", _metadata(context) + "</head>", 1)


def _metadata(context: dict[str, Any]) -> str:
    """What search engines and previews of links read: description, card, address."""
    title = html.unescape(re.sub("<.*?>", "", context.get("title") or context["docstitle"]))
    tags = {"og:type": "article", "og:site_name": context["docstitle"], "og:title": title}
    if summary := context.get("summary"):
        tags |= {"description": summary, "og:description": summary}
    if context.get("pageurl"):  # there is a base address; Sphinx writes the canonical one itself
        card = f"{context['base_url']}four_panels.png"
        tags |= {"og:url": context["pageurl"], "og:image": card}
    lines = []
    for name, content in tags.items():
        kind = "property" if name.startswith("og:") else "name"
        lines.append(f'<meta {kind}="{name}" content="{html.escape(content)}"/>')
    return "\n".join(lines)


def _page_context(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Leave out scripts and buttons that lead nowhere; hand the page's first sentences on."""
    # A page without formulas needs no MathJax either; sphinx-exercise asks for it all the same.
    unused = UNUSED if 'class="math' in context.get("body", "") else (*UNUSED, "MathJax", "mathjax")
    for kind in ("css_files", "script_files"):
        # Sphinx 7.4 writes inline scripts twice.
        once = {str(vars(file)): file for file in context[kind]}
        context[kind] = [
            file for text, file in once.items() if not any(name in text for name in unused)
        ]
    if not app.tags.has("published"):
        away = ("launch-buttons", "source-buttons")
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [each for each in buttons if each.get("label") not in away]
    context["base_url"] = app.config.html_baseurl
    if tree is not None:
        context["summary"] = _summary(tree)


def _summary(tree: nodes.document) -> str:
    """The first paragraph of prose, or what a chapter promises, in at most 200 characters."""
    for paragraph in tree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if isinstance(paragraph.parent, nodes.section) and len(text) > 40:
            return text if len(text) <= 200 else text[:199].rsplit(" ", 1)[0] + " …"
    return ""


# --- The document behind a page ------------------------------------------------------------------


class IndexTerms(SphinxTransform):
    """Index entries of _config.yml's `chapter_terms`: search and index find a method's chapter."""

    default_priority = 500  # before the domains collect entries

    def apply(self, **_: Any) -> None:
        """Write them under the page's title."""
        terms = self.config.chapter_terms.get(self.env.docname, [])
        section = next(iter(self.document.findall(nodes.section)), None)
        if terms and section is not None:
            entries = [("single", term, section["ids"][0], "main", None) for term in terms]
            section.insert(1, addnodes.index(entries=entries))


def _mend_document(app: Sphinx, tree: nodes.document, _page: str) -> None:
    if not app.tags.has("published"):
        for link in [*tree.findall(nodes.reference)]:
            if PLACEHOLDER in link.get("refuri", "") and len(link.parent) == 1:
                link.parent.parent.remove(link.parent)  # the paragraph "Open in Colab"
    for cell in tree.findall(nodes.container):
        if "tag_setup" in cell["classes"]:
            fold = cell.children[0]
            fold["prompt_show"] = fold["prompt_hide"] = "Setup: fetch vaelib, on Colab"
    for table in tree.findall(nodes.table):
        _mend_table(table)
    for image in [*tree.findall(nodes.image)]:
        if image["uri"].endswith(".png"):
            # At the size it was drawn for, in a box that scrolls: else a phone shows a third of it.
            # A size makes Sphinx link the picture to its file, whole.
            with Image.open(Path(app.srcdir, image["uri"])) as picture:
                dpi = picture.info.get("dpi", (96, 96))[0]
                image["width"] = f"{picture.width * 96 / dpi:.0f}px"
            image.replace_self(nodes.container("", image.deepcopy(), classes=["wide"]))


def _mend_table(table: nodes.table) -> None:
    """Columns of numbers end at the right; what stands under an empty heading names its row."""
    for head in table.findall(nodes.thead):
        for title, column in zip(head[0], table.findall(nodes.colspec), strict=True):
            if not title.astext():
                column["stub"] = 1
    rows = [row for body in table.findall(nodes.tbody) for row in body]
    for column in zip(*rows, strict=True):
        texts = [entry.astext().strip() for entry in column if entry.astext().strip()]
        if texts and all(NUMBER.fullmatch(text) for text in texts):
            for entry in column:
                entry["classes"].append("text-right")


class AuthorYear(BaseLabelStyle):
    """Labels of the list of references, as the text cites: Kingma and Welling, 2014."""

    def format_labels(self, sorted_entries: Iterable[Any]) -> Iterable[str]:
        """One label for each entry."""
        for entry in sorted_entries:
            persons = entry.persons.get("author") or entry.persons["editor"]
            parts = [person.rich_prelast_names + person.rich_last_names for person in persons]
            names = [" ".join(map(str, part)) for part in parts]
            names = names if len(names) < 3 else [f"{names[0]} et al."]
            yield f"{' and '.join(names)}, {entry.fields['year']}"


class References(Unsorted):
    """The list of references: labels of :class:`AuthorYear`, by author and year."""

    default_label_style = AuthorYear
    default_sorting_style = "author_year_title"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.config.template_bridge = "book_html.Templates"
    app.config.mathjax_path = "mathjax/startup.js"
    app.config.mathjax3_config = MATHJAX_CONFIG
    register_plugin("pybtex.style.formatting", "author_year", References)
    app.config.bibtex_default_style = "author_year"
    app.add_config_value("chapter_terms", {}, "env")
    app.add_transform(IndexTerms)

    address = app.config.html_theme_options["repository_url"]
    if PLACEHOLDER not in address:
        app.tags.add("published")
        owner, name = address.split("/")[-2:]
        if address.startswith("https://github.com/") and not app.config.html_baseurl:
            app.config.html_baseurl = f"https://{owner}.github.io/{name}/"

    app.connect("doctree-resolved", _mend_document)
    app.connect("html-page-context", _page_context, priority=900)  # after the theme's own
    app.connect("build-finished", book_files.write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
