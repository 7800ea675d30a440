"""Numbers and byte layouts of the NBD protocol.

The names in quotes are the sections of the protocol document (``doc/proto.md`` of the NetworkBlockDevice project).
Everything on the wire is big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

# "Newstyle negotiation", "Fixed newstyle negotiation"
INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
GREETING: Final = struct.Struct(">8s8sH")
OPTION_HEADER: Final = struct.Struct(">8sII")
OPTION_REPLY_HEADER: Final = struct.Struct(">QIII")

# "Handshake flags", "Client flags"
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# "Option types"
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPTION_NAMES: Final = {
    OPT_ABORT: "NBD_OPT_ABORT",
    OPT_LIST: "NBD_OPT_LIST",
    OPT_STARTTLS: "NBD_OPT_STARTTLS",
    OPT_GO: "NBD_OPT_GO",
    OPT_STRUCTURED_REPLY: "NBD_OPT_STRUCTURED_REPLY",
    OPT_SET_META_CONTEXT: "NBD_OPT_SET_META_CONTEXT",
}

# "Option reply types"
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR_BIT: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR_BIT | 1
REP_ERR_POLICY: Final = REP_ERROR_BIT | 2
REP_ERR_INVALID: Final = REP_ERROR_BIT | 3
REP_ERR_PLATFORM: Final = REP_ERROR_BIT | 4
REP_ERR_TLS_REQD: Final = REP_ERROR_BIT | 5
REP_ERR_UNKNOWN: Final = REP_ERROR_BIT | 6
REP_ERR_SHUTDOWN: Final = REP_ERROR_BIT | 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERROR_BIT | 8
REP_ERR_TOO_BIG: Final = REP_ERROR_BIT | 9

# "NBD_INFO information types"
INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3
EXPORT_INFO: Final = struct.Struct(">HQH")
# What answers NBD_OPT_EXPORT_NAME: size and transmission flags, then 124 zeros unless NBD_FLAG_NO_ZEROES.
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
EXPORT_NAME_ZEROES: Final = 124
BLOCK_SIZE_INFO: Final = struct.Struct(">HIII")

# "Transmission flags"
TRANSMISSION_HAS_FLAGS: Final = 1 << 0
TRANSMISSION_READ_ONLY: Final = 1 << 1
TRANSMISSION_SEND_FLUSH: Final = 1 << 2
TRANSMISSION_SEND_FUA: Final = 1 << 3
TRANSMISSION_SEND_TRIM: Final = 1 << 5
TRANSMISSION_SEND_WRITE_ZEROES: Final = 1 << 6
TRANSMISSION_SEND_DF: Final = 1 << 7
TRANSMISSION_CAN_MULTI_CONN: Final = 1 << 8
TRANSMISSION_SEND_CACHE: Final = 1 << 10

# "Request message", "Request types", "Command flags"
REQUEST_MAGIC: Final = 0x25609513
REQUEST: Final = struct.Struct(">IHHQQI")
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3

# "Simple reply message"
SIMPLE_REPLY_MAGIC: Final = 0x67446698
SIMPLE_REPLY: Final = struct.Struct(">IIQ")

# "Structured reply chunk message", "Structured reply types"
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK: Final = struct.Struct(">IHHQI")
CHUNK_FLAG_DONE: Final = 1 << 0
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_OFFSET_HOLE: Final = 2
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR_BIT: Final = 1 << 15
CHUNK_ERROR: Final = CHUNK_ERROR_BIT | 1
CHUNK_ERROR_OFFSET: Final = CHUNK_ERROR_BIT | 2
CHUNK_OFFSET: Final = struct.Struct(">Q")
CHUNK_HOLE: Final = struct.Struct(">QI")
CHUNK_ERROR_HEAD: Final = struct.Struct(">IH")
UINT32: Final = struct.Struct(">I")
STATUS_DESCRIPTOR: Final = struct.Struct(">II")

# The context of the section "Metadata contexts" that every server may have.
BASE_ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1
# QEMU, docs/interop/nbd.txt, "qemu:dirty-bitmap": bit 0 marks a dirty extent.
STATE_DIRTY: Final = 1 << 0
# Our own streaming server: bit 0 marks what no longer needs the source.
WHIMBREL_LOCAL: Final = "x-whimbrel:local"
STATE_LOCAL: Final = 1 << 0

# "Size constraints": without NBD_INFO_BLOCK_SIZE a client may assume these.
DEFAULT_MAX_PAYLOAD_BYTES: Final = 32 << 20
MAX_STRING_BYTES: Final = 4096

# Limits of ours against a peer that makes lengths up.
MAX_OPTION_REPLY_BYTES: Final = 64 << 10
MAX_OPTION_REPLIES: Final = 10_000
MAX_STATUS_BYTES: Final = 16 << 20
MAX_ERROR_BYTES: Final = 64 << 10
MAX_SIZE_BYTES: Final = (1 << 63) - 1

# "Error values"
EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108
