"""The limit of open files is raised to what links need, or named."""

import resource

import pytest

from lowcomm.open_files import FILES_PER_LINK, OTHER_FILES, allow_links, too_few


class Limits:
    """Takes the place of the system's."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = soft, hard

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.now

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert limits[0] <= limits[1] == self.now[1]
        self.now = limits


@pytest.fixture
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Limits:
    limits = Limits(*request.param)
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    return limits


@pytest.mark.parametrize("limits", [(1_024, 65_536)], indirect=True)
def test_a_soft_limit_is_raised_to_what_is_needed_and_never_lowered(limits: Limits) -> None:
    assert allow_links(10) == 10
    assert limits.now == (1_024, 65_536)
    assert allow_links(1_000) == 1_000
    assert limits.now == (OTHER_FILES + 1_000 * FILES_PER_LINK, 65_536)
    assert not too_few(256)
    assert limits.now[0] == OTHER_FILES + 1_000 * FILES_PER_LINK


@pytest.mark.parametrize("limits", [(1_024, 4_096)], indirect=True)
def test_a_hard_limit_is_named_with_what_to_do(limits: Limits) -> None:
    assert not too_few(384)
    said = too_few(385)
    assert limits.now == (4_096, 4_096)
    assert "385 links need about 4106 open files, and this process may have 4096" in said
    assert "beyond 384 links may fail; raise the hard limit (ulimit -Hn" in said
