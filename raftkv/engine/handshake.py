"""How two engines make sure of each other before a link between them counts. No I/O here.

::

    acceptor                                 dialer
       |  Challenge(protocol, nonce)           |
       | ------------------------------------> |
       |  Hello(names, identity, nonce, proof) |
       | <------------------------------------ |
       |  Welcome(names, identity, facts,      |      (or Refusal, to a dialer that was proven)
       |          proof)                       |
       | ------------------------------------> |
       |  Ready(facts, proof)                  |
       | <------------------------------------ |
       |  Accepted                             |      (or Refusal)
       | ------------------------------------> |

A proof is an HMAC-SHA256 under the cluster's secret over the role, both nonces, both names and
both identities, so that it fits one connection, one direction and one pair of nodes; the secret
itself is never sent. With mutual TLS a node is proven by a certificate that carries its name, and
the proofs may be empty. The dialer proves itself first: a stranger learns one random number.

The facts are what all nodes must agree on (:mod:`raftkv.core.agreed`). Each side sends its own
only to a peer that is proven, and under its proof: a stranger can neither read them nor make two
nodes believe that theirs differ. Each compares for itself, so that both can say what differs. A
peer's identity is remembered only if they agree: a node set up wrongly can be set up anew.

Identities (see the data directory's) catch a node that returns under its old name with an emptied
disk: it has forgotten its votes and acknowledgements, so nobody may count it (H19).
"""

import hmac
from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from raftkv.core.agreed import FACT_CHARACTERS_MAX, NODES_FACT, first_difference
from raftkv.rpc.framing import DECODE_ERRORS

PROTOCOL_VERSION = 2
NONCE_BYTES = 32
SECRET_BYTES_MIN = 16
REASON_CHARACTERS_MAX = 1024

Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Proof = Annotated[bytes, msgspec.Meta(max_length=32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Facts = Annotated[
    dict[
        Annotated[str, msgspec.Meta(max_length=64)],
        Annotated[str, msgspec.Meta(max_length=FACT_CHARACTERS_MAX)],
    ],
    msgspec.Meta(max_length=128),
]


class HandshakeError(Exception):
    """The other side is not let in, for the reason in the message.

    ``proven``: it has proven to be of this cluster, so it may be told the reason. ``answer``: what
    it is told besides, or instead.
    """

    def __init__(self, reason: str, *, proven: bool = False, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.proven = proven
        self.answer = answer


class FactsDiffer(HandshakeError):  # noqa: N818 -- what it says
    """Both sides are proven and of one cluster, but what all nodes must agree on differs."""


class LinkHello(msgspec.Struct, frozen=True):
    """Who a node says it is.

    ``facts`` are what it must agree on with all others; a tool that only speaks the protocol has
    none, and is compared with nobody.
    """

    cluster_id: str
    node_name: str
    identity: str
    facts: Mapping[str, str] = {}


class Step(msgspec.Struct, array_like=True, frozen=True):
    """Base of the handshake's messages."""


class Challenge(Step, tag=1, frozen=True):
    """The acceptor's first message; fresh for every connection, so a recorded hello is no use."""

    protocol: int
    nonce: Nonce


class Hello(Step, tag=2, frozen=True):
    """The dialer names itself and whom it means to reach."""

    cluster_id: Name
    node: Name
    identity: Name
    peer: Name
    nonce: Nonce
    proof: Proof


class Welcome(Step, tag=3, frozen=True):
    """The acceptor lets the dialer in and proves itself."""

    cluster_id: Name
    node: Name
    identity: Name
    facts: Facts
    proof: Proof


class Ready(Step, tag=4, frozen=True):
    """The dialer says what it goes by; if that agrees, it lets the acceptor in."""

    facts: Facts
    proof: Proof


class Refusal(Step, tag=5, frozen=True):
    """Why a proven peer is not let in all the same; for the operator who reads its log.

    With a proof of who says so: a stranger's words are not written into anybody's log.
    """

    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARACTERS_MAX)]
    proof: Proof = b""


class OtherProtocol(Step, tag=6, frozen=True):
    """The dialer does not speak the acceptor's protocol, but this one."""

    protocol: int


class Accepted(Step, tag=7, frozen=True):
    """The acceptor lets the dialer in; both count the link from here on."""


AnyStep = Challenge | Hello | Welcome | Ready | Refusal | OtherProtocol | Accepted

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[AnyStep] = msgspec.msgpack.Decoder(AnyStep)


def encode_refusal(reason: str) -> bytes:
    """Return the refusal of a dialer, who has proven itself by its hello."""
    return _encode(Refusal(reason[:REASON_CHARACTERS_MAX]))


class _Side:
    """What both sides know and check.

    ``secret`` None means that TLS proves the peer; then ``certified`` are the names in its
    certificate. Both may be given, and both are checked then.
    """

    def __init__(
        self,
        me: LinkHello,
        nonce: bytes,
        *,
        secret: bytes | None,
        certified: Collection[str] | None = None,
    ) -> None:
        if secret is None and certified is None:
            raise ValueError("a link needs a secret or TLS")
        if secret is not None and len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"the cluster secret is shorter than {SECRET_BYTES_MIN} bytes")
        self._me = me
        self._nonce = nonce
        self._secret = secret
        self._certified = certified

    def _prove(self, role: str, *said: str | bytes | Mapping[str, str]) -> bytes:
        if self._secret is None:
            return b""
        message = _encode((f"raftkv link {PROTOCOL_VERSION} {role}", *said))
        return hmac.digest(self._secret, message, "sha256")

    def _check_proof(self, proof: bytes, expected: bytes) -> None:
        if not hmac.compare_digest(proof, expected):
            raise HandshakeError("does not know the cluster's secret")

    def _check_certificate(self, claimed: str) -> None:
        if self._certified is not None and claimed not in self._certified:
            names = ", ".join(sorted(self._certified)) or "nobody"
            raise HandshakeError(f"claims to be {claimed!r} with a certificate for {names}")

    def _check_cluster(self, cluster_id: str) -> None:
        if cluster_id != self._me.cluster_id:
            raise HandshakeError(
                f"belongs to cluster {cluster_id!r}, this is {self._me.cluster_id!r}", proven=True
            )

    def _check_facts(self, theirs: Mapping[str, str], *, answer: bytes | None = None) -> None:
        difference = first_difference(self._me.facts, theirs)
        if difference is not None:
            raise FactsDiffer(
                f"differs in what all nodes must agree on: {difference}",
                proven=True,
                answer=answer,
            )


class Acceptor(_Side):
    """The side that was connected to; ``dialers`` are the nodes that should connect to it."""

    def __init__(
        self,
        me: LinkHello,
        nonce: bytes,
        *,
        dialers: Collection[str],
        secret: bytes | None,
        certified: Collection[str] | None = None,
    ) -> None:
        super().__init__(me, nonce, secret=secret, certified=certified)
        self._dialers = dialers
        self._hello: Hello | None = None
        self._proven_hello: Hello | None = None
        self.proven: str | None = None
        """Who the dialer is, once that is proven; it may still be refused."""

    def challenge(self) -> bytes:
        """Return the first message."""
        return _encode(Challenge(PROTOCOL_VERSION, self._nonce))

    def receive_hello(self, payload: bytes) -> LinkHello:
        """Check a hello and return who it is from.

        Raises:
            FactsDiffer: it is from a node that is not in this node's list.
            HandshakeError: anything else is wrong.
        """
        hello = decode(payload)
        if isinstance(hello, OtherProtocol):
            raise HandshakeError(
                f"speaks link protocol {hello.protocol}, this node speaks {PROTOCOL_VERSION}"
            )
        if not isinstance(hello, Hello):
            raise HandshakeError("sent no hello")
        self._check_proof(hello.proof, self._proof("dialer", hello))
        self._check_certificate(hello.node)
        self.proven, self._proven_hello = hello.node, hello
        self._check_cluster(hello.cluster_id)
        me = self._me.node_name
        if hello.peer != me:
            raise HandshakeError(f"looks for node {hello.peer!r}, this is {me!r}", proven=True)
        if hello.node not in self._dialers:
            self._refuse_to_be_dialed(hello.node)
        self._hello = hello
        return LinkHello(hello.cluster_id, hello.node, hello.identity)

    def _refuse_to_be_dialed(self, node: str) -> None:
        """Refuse a node that is not to dial this one, or is not in its list of nodes at all."""
        me, facts = self._me.node_name, self._me.facts
        reason = f"{node!r} is not a node that dials {me!r}"
        if node < me and facts:
            raise FactsDiffer(f"{reason}, whose {NODES_FACT} is {facts[NODES_FACT]}", proven=True)
        raise HandshakeError(reason, proven=True)

    def refusal(self, reason: str) -> bytes:
        """Return why the dialer, who has proven itself, is not let in."""
        hello, reason = self._proven_hello, reason[:REASON_CHARACTERS_MAX]
        if hello is None:
            raise RuntimeError("a stranger is not told the reason")
        return _encode(Refusal(reason, self._prove("refusal", *self._said(hello), reason)))

    def welcome(self) -> bytes:
        """Return the answer to the hello that was accepted."""
        if self._hello is None:
            raise RuntimeError("no hello was accepted")
        me, proof = self._me, self._proof("acceptor", self._hello)
        return _encode(Welcome(me.cluster_id, me.node_name, me.identity, dict(me.facts), proof))

    def receive_ready(self, payload: bytes) -> LinkHello:
        """Check that both agree, and return who the dialer is and its facts.

        Raises:
            FactsDiffer: what all nodes must agree on differs.
            HandshakeError: anything else is wrong.
        """
        hello = self._hello
        if hello is None:
            raise RuntimeError("no hello was accepted")
        step = decode(payload)
        if isinstance(step, Refusal):
            raise HandshakeError(f"refuses this node: {step.reason}")
        if not isinstance(step, Ready):
            raise HandshakeError("did not say that it is ready")
        self._check_proof(step.proof, self._proof("ready", hello, step.facts))
        self._check_facts(step.facts)
        return LinkHello(hello.cluster_id, hello.node, hello.identity, step.facts)

    def accepted(self) -> bytes:
        """Return the last message."""
        return _encode(Accepted())

    def _proof(self, role: str, hello: Hello, facts: Mapping[str, str] | None = None) -> bytes:
        me, said = self._me, self._said(hello)
        if role == "dialer":
            return self._prove(role, *said)
        mine = (me.cluster_id, me.node_name, me.identity)
        return self._prove(role, *said, *mine, me.facts if facts is None else facts)

    def _said(self, hello: Hello) -> tuple[str | bytes, ...]:
        dialer = (hello.cluster_id, hello.node, hello.identity, hello.peer)
        return (self._nonce, hello.nonce, *dialer)


class Dialer(_Side):
    """The side that connects, to reach ``peer`` and nobody else."""

    def __init__(
        self,
        me: LinkHello,
        nonce: bytes,
        *,
        peer: str,
        secret: bytes | None,
        certified: Collection[str] | None = None,
    ) -> None:
        super().__init__(me, nonce, secret=secret, certified=certified)
        self._peer = peer
        self._challenge: Challenge | None = None
        self._acceptor: tuple[str, str, str] | None = None

    @property
    def challenged(self) -> bool:
        """Whether the acceptor's first message has come."""
        return self._challenge is not None

    def receive_challenge(self, payload: bytes) -> bytes:
        """Return the hello that answers a challenge; raises HandshakeError."""
        challenge = decode(payload)
        if not isinstance(challenge, Challenge):
            raise HandshakeError("sent no challenge")
        if challenge.protocol != PROTOCOL_VERSION:
            raise HandshakeError(
                f"speaks link protocol {challenge.protocol}, this node speaks {PROTOCOL_VERSION}",
                answer=_encode(OtherProtocol(PROTOCOL_VERSION)),
            )
        self._check_certificate(self._peer)
        self._challenge = challenge
        me = self._me
        return _encode(
            Hello(
                cluster_id=me.cluster_id,
                node=me.node_name,
                identity=me.identity,
                peer=self._peer,
                nonce=self._nonce,
                proof=self._prove("dialer", *self._said()),
            )
        )

    def receive_welcome(self, payload: bytes) -> LinkHello:
        """Check the answer and return who it is from and its facts.

        Raises:
            FactsDiffer: what all nodes must agree on differs.
            HandshakeError: anything else is wrong.
        """
        welcome = decode(payload)
        if isinstance(welcome, Refusal):
            raise HandshakeError(self._refused(welcome))
        if not isinstance(welcome, Welcome):
            raise HandshakeError("sent no welcome")
        his = (welcome.cluster_id, welcome.node, welcome.identity)
        expected = self._prove("acceptor", *self._said(), *his, welcome.facts)
        self._check_proof(welcome.proof, expected)
        self._check_certificate(welcome.node)
        self._check_cluster(welcome.cluster_id)
        if welcome.node != self._peer:
            raise HandshakeError(f"is node {welcome.node!r}, not {self._peer!r}", proven=True)
        self._acceptor = his
        # The acceptor is to see for itself what differs: it believes no refusal without a proof.
        self._check_facts(welcome.facts, answer=self.ready())
        return LinkHello(*his, welcome.facts)

    def _refused(self, refusal: Refusal) -> str:
        """Say what a refusal says, if it proves who sends it; TLS has proven that before."""
        proof = self._prove("refusal", *self._said(), refusal.reason)
        if not hmac.compare_digest(refusal.proof, proof):
            return "refuses this node, and does not prove who it is"
        return f"refuses this node: {refusal.reason}"

    def ready(self) -> bytes:
        """Return the answer to the welcome that was accepted."""
        if self._acceptor is None:
            raise RuntimeError("no welcome was accepted")
        facts = dict(self._me.facts)
        return _encode(Ready(facts, self._prove("ready", *self._said(), *self._acceptor, facts)))

    def receive_accepted(self, payload: bytes) -> None:
        """Check that the acceptor lets this side in as well; raises HandshakeError."""
        step = decode(payload)
        if isinstance(step, Refusal):
            raise HandshakeError(f"refuses this node: {step.reason}")
        if not isinstance(step, Accepted):
            raise HandshakeError("did not say that it accepts this node")

    def _said(self) -> tuple[str | bytes, ...]:
        if self._challenge is None:
            raise HandshakeError("sent a welcome before a challenge")
        me = self._me
        mine = (me.cluster_id, me.node_name, me.identity, self._peer)
        return (self._challenge.nonce, self._nonce, *mine)


def decode(payload: bytes) -> AnyStep:
    """Decode one step; raises HandshakeError."""
    try:
        return _decoder.decode(payload)
    except DECODE_ERRORS as error:
        raise HandshakeError(f"sent what is no handshake: {error}") from error
