"""Checks Ed25519 signatures (RFC 8032, 5.1.7) with Python's own integers: 8 MB less than the library takes in memory.

Only checks: all it handles is public, so that its running time may depend on it. Points are (X, Y, Z, T) with x = X/Z,
y = Y/Z, xy = T/Z on -x^2 + y^2 = 1 + d x^2 y^2 mod P (Hisil et al. 2008).
"""

from __future__ import annotations

from edge_runtime.deploy.trust.digest import new_hash

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
D = -121665 * pow(121666, -1, P) % P
_ROOT = pow(2, (P - 1) // 4, P)  # of -1

Point = tuple[int, int, int, int]
_ZERO: Point = (0, 1, 1, 0)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) is one of `message` by the key `public` (32 bytes)."""
    key = _decoded(public) if len(public) == 32 else None
    s = int.from_bytes(signature[32:], "little")
    # A second signature of the same message would be s + L.
    if key is None or len(signature) != 64 or s >= L:
        return False
    digest = new_hash("sha512")
    digest.update(signature[:32] + public + message)
    k = int.from_bytes(bytes.fromhex(digest.hexdigest()), "little") % L
    x, y, z, t = key
    return _encoded(_sum_of_products(s, _BASE, k, (P - x, y, z, P - t))) == signature[:32]


def _sum_of_products(a: int, p: Point, b: int, q: Point) -> Point:
    """The point a p + b q: both numbers' bits together, from the highest down."""
    table = {(0, 1): q, (1, 0): p, (1, 1): _sum(p, q)}
    total = _ZERO
    for place in reversed(range(max(a.bit_length(), b.bit_length()))):
        total = _sum(total, total)
        bits = (a >> place & 1, b >> place & 1)
        total = _sum(total, table[bits]) if bits in table else total
    return total


def _sum(p: Point, q: Point) -> Point:
    """Complete: right for any two points, equal ones too."""
    x1, y1, z1, t1 = p
    x2, y2, z2, t2 = q
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _decoded(content: bytes) -> Point | None:
    """The point, None if there is none: 5.1.3."""
    number = int.from_bytes(content, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def _encoded(p: Point) -> bytes:
    x, y, z, _ = p
    inverse = pow(z, -1, P)
    return (y * inverse % P | (x * inverse % P & 1) << 255).to_bytes(32, "little")


def _base() -> Point:
    point = _decoded((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE = _base()
