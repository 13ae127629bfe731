"""Commits of rendered projects, in a temporary repository that borrows the objects of the project's repository."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from updating import record
from updating.git import Repository

# Mode and object of a file; None removes it.
Entry = tuple[str, str] | None
EMPTY_TREE_INPUT = b""


class Workshop:
    """A temporary repository at the commit of the project, in which nothing of the user's settings applies."""

    def __init__(self, folder: Path, project: Repository, date: str) -> None:
        """The same update has the same commits, and so the same markers of conflicts: all commits have one date."""
        self._dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        self._folder = folder
        self.repository = Repository(folder / "work", isolated=True)
        self.repository.folder.mkdir(parents=True)
        form = project.find("rev-parse", "--show-object-format") or "sha1"
        self.repository.run("init", "--quiet", "--template=", f"--object-format={form}")
        objects = project.path("objects")
        alternates = self.repository.folder / ".git" / "objects" / "info" / "alternates"
        alternates.parent.mkdir(exist_ok=True)
        alternates.write_bytes(os.fsencode(objects) + b"\n")
        self.head = project.read("rev-parse", "HEAD^{commit}")
        self.repository.run("update-ref", "--no-deref", "HEAD", self.head)

    @contextmanager
    def index(self) -> Iterator[dict[str, str]]:
        """Yield the variables for an index that is used once."""
        path = self._folder / "index"
        try:
            yield {"GIT_INDEX_FILE": str(path)}
        finally:
            path.unlink(missing_ok=True)

    def build_tree(self, rendered: Path, content: bytes, prefix: str) -> str:
        """Return a tree of the project's commit with the rendered files in place of the project's.

        The other files of the repository are in the tree too, so that git does not find renames among them. Files
        that the rendered .gitignore names, such as secrets, stay out.
        """
        (rendered / record.NAME).write_bytes(content)
        git_dir = self.repository.folder / ".git"
        outside = Repository(rendered, isolated=True, git_dir=git_dir)
        with self.index() as index:
            outside.run("--work-tree=.", "add", "--all", variables=index)
            outside.run("--work-tree=.", "add", "--force", record.NAME, variables=index)
            tree = outside.read("write-tree", variables=index)
        if not prefix:
            return tree
        with self.index() as index:
            self.repository.run("read-tree", self.head, variables=index)
            self.repository.run("rm", "-r", "-f", "-q", "--cached", "--", prefix, variables=index)
            self.repository.run("read-tree", f"--prefix={prefix}", tree, variables=index)
            return self.repository.read("write-tree", variables=index)

    def change_tree(self, tree: str, changes: Mapping[str, Entry]) -> str:
        missing = "0" * len(self.head)
        lines = [
            f"{entry[0]} {entry[1]}\t{path}\0" if entry else f"0 {missing}\t{path}\0" for path, entry in changes.items()
        ]
        with self.index() as index:
            self.repository.run("read-tree", tree, variables=index)
            self.repository.run(
                "update-index", "-z", "--index-info", stdin=os.fsencode("".join(lines)), variables=index
            )
            return self.repository.read("write-tree", variables=index)

    def commit(self, tree: str, message: str, *parents: str) -> str:
        options = [option for parent in parents for option in ("-p", parent)]
        return self.repository.read("commit-tree", tree, *options, stdin=os.fsencode(message), variables=self._dates)

    def snapshot(self) -> str:
        """Return the tree of all files as they are in the work tree, with the markers of conflicts."""
        with self.index() as index:
            self.repository.run("read-tree", "HEAD", variables=index)
            self.repository.run("add", "--all", "--force", ".", variables=index)
            return self.repository.read("write-tree", variables=index)

    def remove(self) -> None:
        shutil.rmtree(self._folder)
