"""What lies beside the pages: MathJax, lighter styles and icons, and a site's root.

book_html.py calls it when Sphinx has written the pages.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from fontTools import subset, ttLib
from sphinx.application import Sphinx

# The parts of MathJax that the book's formulas need, without its menu: that makes each formula a
# stop of the Tab key. The package brings version 3.2.2, file by file what npm's `mathjax` has.
MATHJAX = [
    "startup.js",
    "core.js",
    "input/tex-base.js",
    "input/tex/extensions/ams.js",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "output/chtml/fonts/woff-v2/*.woff",
    "a11y/assistive-mml.js",
]


def write(app: Sphinx, exception: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    package = find_spec("sphinx-mathjax-offline")
    assert package is not None and package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "static", "mathjax")
    for pattern in MATHJAX:
        for path in source.glob(pattern):
            target = out / "_static" / "mathjax" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    _slim(out)
    _write_root(app, out)


def _slim(out: Path) -> None:
    """Drop rules for classes that no page and no script mentions, and icons that no rule names.

    Sphinx copies the whole files anew at each build, so nothing stays away that a page needs.
    """
    static = out / "_static"
    scripts = {*static.glob("*.js"), *static.glob("scripts/*.js")}
    scripts -= {static / "scripts" / "fontawesome.js"}
    words: set[str] = set()
    for path in [*out.rglob("*.html"), *scripts]:
        words |= set(re.findall(r"[\w-]+", path.read_text("utf-8")))

    def needed(selector: str) -> bool:
        # What stands in brackets excludes or offers a choice: it does not have to be there.
        plain = re.sub(r"\((?:[^()]|\([^()]*\))*\)|\[[^]]*\]", "", selector)
        return all(name in words for name in re.findall(r"\.([A-Za-z_-][\w-]*)", plain))

    def rule(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0] if found[0].startswith("/*!") else ""  # licences stay
        kept = [each for each in re.split(r",(?![^(]*\))", found[1]) if needed(each)]
        return f"{','.join(kept)}{{{found[2]}}}" if kept else ""

    icons: set[int] = set()
    for path in static.rglob("*.css"):
        text = re.sub(
            r"/\*.*?\*/|([^{};/]+)\{([^{}]*)\}", rule, path.read_text("utf-8"), flags=re.DOTALL
        )
        # Of the two formats of the icon font, the one that can be cut down without a compressor.
        text = re.sub(r'url\([^)]*\.woff2\) ?format\("woff2"\),', "", text)
        text = re.sub(r"\s+", " ", re.sub(r"@media[^{}]*\{\s*\}", "", text))
        path.write_text(text, "utf-8")
        icons |= {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})", text)}
        icons |= {ord(letter) for letter in text if ord(letter) >= 0xE000}
    for path in static.glob("vendor/fontawesome/webfonts/*.ttf"):
        font = ttLib.TTFont(path)
        subsetter = subset.Subsetter()
        subsetter.populate(unicodes=icons)
        subsetter.subset(font)
        font.save(path)


ROOT_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{title}</title>
{head}
<style>
:root {{ color-scheme: light dark; font: 1rem sans-serif }}
body {{ margin: 3rem; background: Canvas; color: CanvasText }}
a {{ color: inherit }}
</style>
</head>
<body><main><h1>{title}</h1><p>{text}</p></main></body>
</html>
"""

SITEMAP = """\
<?xml version="1.0" encoding="utf-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
{urls}</urlset>
"""


def _write_root(app: Sphinx, out: Path) -> None:
    """A site's root: the way to the first page, a page for what is not there, a map."""
    title, base = app.config.html_title, app.config.html_baseurl
    first = f"{app.config.root_doc}.html"
    refresh = f'<meta http-equiv="refresh" content="0; url={first}"/>'
    text = f'The book begins here: <a href="{first}">{title}</a>.'
    (out / "index.html").write_text(ROOT_PAGE.format(title=title, head=refresh, text=text), "utf-8")
    # A server shows it at any address, so its one link is the whole one.
    hidden = '<meta name="robots" content="noindex"/>'
    text = f'The book begins <a href="{base or "/"}{first}">at its first page</a>.'
    missing = ROOT_PAGE.format(title="There is no such page", head=hidden, text=text)
    (out / "404.html").write_text(missing, "utf-8")
    if base:
        pages = sorted(app.env.found_docs)
        urls = "".join(f"<url><loc>{base}{page}.html</loc></url>\n" for page in pages)
        (out / "sitemap.xml").write_text(SITEMAP.format(urls=urls), "utf-8")
