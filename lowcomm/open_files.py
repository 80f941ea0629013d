"""How many files this process and its children may open; the swarm needs some for each link."""

from __future__ import annotations

import resource

FILES_PER_LINK = 10
"""Measured with 16 to 64 islands, in an island and in its p2pd alike."""
OTHER_FILES = 256
MOST_LINKS = 1_024
"""An island has no more."""


def allow_links(links: int) -> int:
    """Raise the limit to what so many links need, as far as the system lets a process do that.

    Returns:
        The links for which there is room.
    """
    needed = OTHER_FILES + FILES_PER_LINK * links
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return links
    allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(links, max(0, (max(soft, allowed) - OTHER_FILES) // FILES_PER_LINK))


def too_few(links: int) -> str:
    """What is wrong where there is no room for so many links, and what to do; empty if there is."""
    room = allow_links(links)
    if room >= links:
        return ""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{links} links need about {OTHER_FILES + FILES_PER_LINK * links} open files, and this process may "
        f"have {hard}: beyond {room} links may fail; raise the hard limit (ulimit -Hn, LimitNOFILE= of a "
        "systemd unit, --ulimit nofile= of docker) and start again"
    )
