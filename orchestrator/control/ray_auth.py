"""Whether a Ray cluster lets in only those who have its token: asked at its door, without one."""

from __future__ import annotations

from typing import Literal

RayAuth = Literal["token", "none", "unknown"]

CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""What a Ray that comes asks first; it changes nothing, and an empty message is a whole request of it."""


def ray_auth(address: str, timeout_s: float = 3.0) -> RayAuth:
    """`token` where the head at HOST:PORT refuses whoever has none, `none` where it answers anybody.

    Ray's own switch is RAY_AUTH_MODE; before 2.52 there was none (CVE-2023-48022).
    """
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CALL)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return "token" if error.code() is grpc.StatusCode.UNAUTHENTICATED else "unknown"
    return "none"


def warning(address: str) -> str:
    """What an operator is to know of a cluster that lets in everybody."""
    return (
        f"the Ray cluster at {address} asks nobody for a token: whoever reaches its ports can run programs as its account, and "
        "read the logs and the secrets of orch's runs"
    )


MEND = (
    "start its head and its nodes with RAY_AUTH_MODE=token and one token file, mode 0600, on all of them "
    "(RAY_AUTH_TOKEN_PATH), and `orch up` with the same two variables"
)
