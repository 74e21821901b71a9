"""THE TABLE: what each route demands of its caller.

A route that is not here is the administrators' alone; a test demands that every one is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockyard.api import (
    attachments,
    clients,
    groups,
    health,
    openapi,
    pools,
    receives,
    sessions,
    snapshots,
    tokens,
    volumes,
)
from blockyard.api.access import Level

NOUNS = (groups, volumes, snapshots, receives, clients, attachments, sessions, pools, health, tokens, openapi)
"""Whose routers make up the application."""

ADMIN, ANY, GROUP, SELF = Level.ADMIN, Level.ANY, Level.GROUP, Level.SELF

LEVELS: dict[Callable[..., Any], Level] = {
    groups.list_groups: ANY,
    groups.create_group: ANY,
    groups.show_group: GROUP,
    groups.set_group: GROUP,
    groups.delete_group: GROUP,
    groups.clone_group: GROUP,
    groups.rollback_group: GROUP,
    volumes.list_volumes: GROUP,
    volumes.add_volume: GROUP,
    volumes.resize_volume: GROUP,
    volumes.remove_volume: GROUP,
    snapshots.list_snapshots: GROUP,
    snapshots.create_snapshot: GROUP,
    snapshots.delete_snapshot: GROUP,
    snapshots.send_snapshot: GROUP,
    snapshots.diff_snapshots: GROUP,
    snapshots.verify_snapshot: GROUP,
    receives.receive_snapshot: ADMIN,
    receives.show_receive: ADMIN,
    receives.abort_receive: ADMIN,
    clients.list_clients: GROUP,
    clients.allow_client: ADMIN,
    clients.deny_client: ADMIN,
    attachments.list_all_attachments: ANY,
    attachments.list_attachments: GROUP,
    attachments.attach: SELF,
    attachments.release: SELF,
    sessions.list_sessions: ADMIN,
    pools.list_pools: ADMIN,
    pools.show_pool: ADMIN,
    pools.sweep_pool: ADMIN,
    pools.scrub_pool: ADMIN,
    health.health: ANY,
    tokens.create_token: ADMIN,
    tokens.list_tokens: ADMIN,
    tokens.revoke_token: ADMIN,
    tokens.list_audit: ADMIN,
    openapi.openapi: ANY,
}
