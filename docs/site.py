"""Add the Markdown files outside of docs/ to the site, and point links at them.

MkDocs calls the functions of this module (mkdocs.yml, `hooks`).
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside of docs/, by their pages on the site.
OUTSIDE_PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "experiments.md": "experiments/README.md",
    "noun_tagger.md": "stages/vocabulary/noun_tagger/README.md",
}
# Files that a page links and the site serves as they are.
DOWNLOADS = ("LICENSE", "CITATION.cff", "prefect.yaml")
LINK = re.compile(r"(\]\()([^)#\s]+)(#[\w-]+)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/."""
    for page, source in OUTSIDE_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for name in DOWNLOADS:
        files.append(
            File.generated(config, f"{name}.txt", abs_src_path=str(ROOT / name))
        )
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Rewrite links that are relative to the repository into links between pages of the site."""
    source = OUTSIDE_PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {file: name for name, file in OUTSIDE_PAGES.items()}
    pages |= {name: f"{name}.txt" for name in DOWNLOADS}

    def rewrite(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups()
        if "://" in target:
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        return (
            opening
            + pages.get(path, path.removeprefix("docs/"))
            + (anchor or "")
            + closing
        )

    return LINK.sub(rewrite, markdown)
