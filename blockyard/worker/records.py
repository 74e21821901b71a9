"""The border between the store's records and errors and the product's. Pure translation, no state.

Invariant: a secret passes here only on its way into the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from blockstore import api
from blockyard import errors
from blockyard.model import (
    Auth,
    Cache,
    ChapCredentials,
    Client,
    ClientSpec,
    Group,
    NewGroup,
    PoolState,
    Snapshot,
    SnapshotVolume,
    Volume,
)

T = TypeVar("T")

SHOWN_SNAPSHOTS = 20  # with a group: every change of a group is reported with them, so they must not grow with it

STORE_ERRORS: dict[type[api.StoreError], type[errors.ProductError]] = {
    api.OutOfRange: errors.Invalid,
    api.Invalid: errors.Invalid,
    api.OutOfSpace: errors.OutOfSpace,
    api.Busy: errors.Busy,
    api.MediumError: errors.Damaged,
    api.Corrupt: errors.Damaged,
    api.FailStopped: errors.FailStopped,
    api.Undecided: errors.FailStopped,  # whether it happened is known after the worker's restart
    api.Revoked: errors.Busy,
    api.Closed: errors.Unavailable,
    api.NotFound: errors.NotFound,
    api.AlreadyExists: errors.AlreadyExists,
    api.InUse: errors.InUse,
    api.Locked: errors.Locked,
}


@contextmanager
def product_errors() -> Iterator[None]:
    """Raise the product's error in place of the store's."""
    try:
        yield
    except api.StoreError as error:
        raise STORE_ERRORS[type(error)](str(error)) from error


async def wait_for_store(future: Future[T]) -> T:
    """The result of a control verb of the store. Raises ProductError."""
    with product_errors():
        return await asyncio.wrap_future(future)


def client_record(spec: ClientSpec) -> api.ClientRecord:
    return api.ClientRecord(
        initiator=spec.initiator, address=spec.address, chap=_secret(spec.chap), mutual=_secret(spec.mutual)
    )


def _secret(credentials: ChapCredentials | None) -> api.ChapSecret | None:
    return None if credentials is None else api.ChapSecret(credentials.user, credentials.secret)


def client_model(record: api.ClientRecord) -> Client:
    auth = Auth.MUTUAL if record.mutual else Auth.CHAP if record.chap else Auth.NONE
    return Client(
        initiator=record.initiator,
        address=record.address,
        auth=auth,
        chap_user=record.chap.user if record.chap else None,
        mutual_user=record.mutual.user if record.mutual else None,
    )


def volume_model(group: api.Group, record: api.VolumeRecord, usage: api.GroupUsage | None = None) -> Volume:
    own = usage.volumes.get(record.lun) if usage else None
    return Volume(
        lun=record.lun,
        name=record.name,
        uuid=record.uuid,
        size=record.size,
        mapped=group.mapped_bytes(record.lun),
        created=record.created,
        exclusive=own.exclusive if own else None,
        reclaimable=own.reclaimable if own else None,
    )


def snapshot_model(record: api.SnapshotRecord, *, mapped: int | None = None, exclusive: int | None = None) -> Snapshot:
    return Snapshot(
        name=record.name,
        uuid=record.uuid,
        created=record.created,
        volumes=tuple(SnapshotVolume(lun=each.lun, name=each.name, size=each.size) for each in record.volumes),
        mapped=mapped,
        exclusive=exclusive,
    )


def group_model(group: api.Group, pool: str, sessions: int, usage: api.PoolUsage | None = None) -> Group:
    record = group.record
    own = usage.groups.get(record.uuid) if usage else None
    newest = [group.snapshots[name] for name in list(group.snapshots)[-SHOWN_SNAPSHOTS:]]
    return Group(
        name=record.name,
        uuid=record.uuid,
        iqn=record.iqn,
        pool=pool,
        state=PoolState.SERVING,
        created=record.created,
        cache=Cache(record.cache.value),
        origin=record.origin,
        volumes=tuple(volume_model(group, volume, own) for volume in sorted(record.volumes, key=lambda each: each.lun)),
        snapshots=tuple(snapshot_model(snapshot) for snapshot in newest),
        snapshot_count=len(group.snapshots),
        clients=tuple(client_model(client) for client in record.clients),
        sessions=sessions,
        labels=dict(record.labels),
        hosts=tuple(attachment.host for attachment in record.attachments),
        exclusive=own.exclusive if own else None,
        reclaimable=own.reclaimable if own else None,
        usage_taken=usage.taken if usage and own else None,
    )


def differences(record: api.GroupRecord, asked: NewGroup, iqn: str | None) -> list[str]:
    """What of ``asked`` the existing group does not have; empty if creating it again changes nothing."""
    sizes = [volume.size for volume in record.volumes]
    asked_sizes = [volume.size for volume in asked.volumes]
    found = []
    if sizes != asked_sizes:
        found.append(f"volumes of {_listed(sizes)} bytes instead of {_listed(asked_sizes)}")
    if record.cache.value != asked.cache.value:
        found.append(f"cache {record.cache.value} instead of {asked.cache.value}")
    if not same_clients(record, asked.clients):
        found.append("other clients or secrets")
    if dict(record.labels) != asked.labels:
        found.append("other labels")
    if iqn is not None and iqn != record.iqn:
        found.append(f"IQN {record.iqn} instead of {iqn}")
    return found


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "0"


def same_clients(record: api.GroupRecord, asked: tuple[ClientSpec, ...]) -> bool:
    return {client.initiator: client for client in record.clients} == {
        spec.initiator: client_record(spec) for spec in asked
    }
