# ruff: noqa
# fmt: off
# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("type", "connect", "stream_open", "stream_handler", "dht")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        IDENTIFY: _ClassVar[Request.Type]
        CONNECT: _ClassVar[Request.Type]
        STREAM_OPEN: _ClassVar[Request.Type]
        STREAM_HANDLER: _ClassVar[Request.Type]
        DHT: _ClassVar[Request.Type]
        LIST_PEERS: _ClassVar[Request.Type]
    IDENTIFY: Request.Type
    CONNECT: Request.Type
    STREAM_OPEN: Request.Type
    STREAM_HANDLER: Request.Type
    DHT: Request.Type
    LIST_PEERS: Request.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONNECT_FIELD_NUMBER: _ClassVar[int]
    STREAM_OPEN_FIELD_NUMBER: _ClassVar[int]
    STREAM_HANDLER_FIELD_NUMBER: _ClassVar[int]
    DHT_FIELD_NUMBER: _ClassVar[int]
    type: Request.Type
    connect: ConnectRequest
    stream_open: StreamOpenRequest
    stream_handler: StreamHandlerRequest
    dht: DHTRequest
    def __init__(self, type: _Optional[_Union[Request.Type, str]] = ..., connect: _Optional[_Union[ConnectRequest, _Mapping]] = ..., stream_open: _Optional[_Union[StreamOpenRequest, _Mapping]] = ..., stream_handler: _Optional[_Union[StreamHandlerRequest, _Mapping]] = ..., dht: _Optional[_Union[DHTRequest, _Mapping]] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("type", "error", "stream_info", "identify", "dht", "peers")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OK: _ClassVar[Response.Type]
        ERROR: _ClassVar[Response.Type]
    OK: Response.Type
    ERROR: Response.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STREAM_INFO_FIELD_NUMBER: _ClassVar[int]
    IDENTIFY_FIELD_NUMBER: _ClassVar[int]
    DHT_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    type: Response.Type
    error: ErrorResponse
    stream_info: StreamInfo
    identify: PeerInfo
    dht: DHTResponse
    peers: _containers.RepeatedCompositeFieldContainer[PeerInfo]
    def __init__(self, type: _Optional[_Union[Response.Type, str]] = ..., error: _Optional[_Union[ErrorResponse, _Mapping]] = ..., stream_info: _Optional[_Union[StreamInfo, _Mapping]] = ..., identify: _Optional[_Union[PeerInfo, _Mapping]] = ..., dht: _Optional[_Union[DHTResponse, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerInfo, _Mapping]]] = ...) -> None: ...

class ErrorResponse(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class PeerInfo(_message.Message):
    __slots__ = ("id", "addresses")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, id: _Optional[bytes] = ..., addresses: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("peer", "addresses", "timeout_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    timeout_s: int
    def __init__(self, peer: _Optional[bytes] = ..., addresses: _Optional[_Iterable[bytes]] = ..., timeout_s: _Optional[int] = ...) -> None: ...

class StreamOpenRequest(_message.Message):
    __slots__ = ("peer", "protocols", "timeout_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    protocols: _containers.RepeatedScalarFieldContainer[str]
    timeout_s: int
    def __init__(self, peer: _Optional[bytes] = ..., protocols: _Optional[_Iterable[str]] = ..., timeout_s: _Optional[int] = ...) -> None: ...

class StreamHandlerRequest(_message.Message):
    __slots__ = ("address", "protocols", "balanced")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    BALANCED_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    protocols: _containers.RepeatedScalarFieldContainer[str]
    balanced: bool
    def __init__(self, address: _Optional[bytes] = ..., protocols: _Optional[_Iterable[str]] = ..., balanced: bool = ...) -> None: ...

class StreamInfo(_message.Message):
    __slots__ = ("peer", "address", "protocol")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    address: bytes
    protocol: str
    def __init__(self, peer: _Optional[bytes] = ..., address: _Optional[bytes] = ..., protocol: _Optional[str] = ...) -> None: ...

class DHTRequest(_message.Message):
    __slots__ = ("type", "cid", "count", "timeout_s")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FIND_PROVIDERS: _ClassVar[DHTRequest.Type]
        PROVIDE: _ClassVar[DHTRequest.Type]
    FIND_PROVIDERS: DHTRequest.Type
    PROVIDE: DHTRequest.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    type: DHTRequest.Type
    cid: bytes
    count: int
    timeout_s: int
    def __init__(self, type: _Optional[_Union[DHTRequest.Type, str]] = ..., cid: _Optional[bytes] = ..., count: _Optional[int] = ..., timeout_s: _Optional[int] = ...) -> None: ...

class DHTResponse(_message.Message):
    __slots__ = ("type", "peer")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BEGIN: _ClassVar[DHTResponse.Type]
        VALUE: _ClassVar[DHTResponse.Type]
        END: _ClassVar[DHTResponse.Type]
    BEGIN: DHTResponse.Type
    VALUE: DHTResponse.Type
    END: DHTResponse.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    type: DHTResponse.Type
    peer: PeerInfo
    def __init__(self, type: _Optional[_Union[DHTResponse.Type, str]] = ..., peer: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...
