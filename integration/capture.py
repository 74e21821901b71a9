"""What tshark says of the bytes on the loopback: a capture of one port, dissected as iSCSI."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

WAIT_LIMIT = 30.0  # seconds
# Wireshark's own words: what it could not dissect, and what it calls an error in any protocol (TCP's warnings about
# timing on a busy machine are no errors).
COMPLAINT = "_ws.malformed || _ws.expert.severity == 8388608"


class Capture:
    """Records while its context lasts; asked afterwards."""

    def __init__(self, port: int, path: Path) -> None:
        self._port = port
        self._path = path

    def __enter__(self) -> Capture:
        path = self._path
        path.touch()
        command = ["dumpcap", "-q", "-i", "lo", "-p", "-f", f"tcp port {self._port}", "-w", str(path)]
        self._dumpcap = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._dumpcap.stderr is not None
        seen = []
        for line in self._dumpcap.stderr:
            seen.append(line)
            if line.startswith("File:"):  # said once packets are being taken
                return self
        raise AssertionError(f"dumpcap does not capture on lo (root, or group wireshark?): {''.join(seen)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dumpcap.send_signal(signal.SIGINT)
        self._dumpcap.communicate(timeout=WAIT_LIMIT)

    def wait_for(self, display_filter: str) -> None:
        """Until a packet of that kind has reached the file: the kernel hands packets over in blocks."""
        limit = time.monotonic() + WAIT_LIMIT
        while self.count(display_filter) == 0:
            assert time.monotonic() < limit, f"no packet matches {display_filter} in {self._path}"

    def count(self, display_filter: str) -> int:
        return len(self._rows(display_filter, "frame.number"))

    def complaints(self) -> list[str]:
        """A line for each packet that tshark calls malformed or erroneous.

        One kind is excused, because it is the initiator's wish: an INQUIRY answer that fills exactly the allocation
        length. Linux asks for a page's four-byte header first, and Wireshark misses the page behind it.
        """
        asked = {row[0]: row[1] for row in self._rows("scsi.cdb.alloclen16", "frame.number", "scsi.cdb.alloclen16")}
        columns = ("_ws.malformed", "iscsi.request_frame", "iscsi.datasegmentlength", "_ws.col.Info")
        found = []
        for malformed, request, length, info in self._rows(COMPLAINT, *columns):
            cut_as_asked = malformed.startswith("[Malformed Packet: SCSI]") and asked.get(request) == length
            if not cut_as_asked:
                found.append(f"{info} ({malformed}; answers frame {request or 'none'})")
        return found

    def _rows(self, display_filter: str, *fields: str) -> list[tuple[str, ...]]:
        """The fields of every packet that the filter lets through."""
        command = ["tshark", "-r", str(self._path), "-d", f"tcp.port=={self._port},iscsi", "-Y", display_filter]
        command += ["-T", "fields", *(word for field in fields for word in ("-e", field))]
        # A file that is still being written may end within a packet: tshark shows the rest and ends with code 2.
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_LIMIT, check=False)
        assert done.returncode in (0, 2), f"tshark ended with code {done.returncode}: {done.stderr}"
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]
