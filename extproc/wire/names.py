"""Every header, metadata key, attribute and cluster name that crosses a border, spelled once.

Three parties have to agree on these words: Envoy's configuration (`envoy_config`), the messages (`wire.ext_proc`) and
the decision core. Metadata is the memory of a request: it lives in Envoy, so that any extproc can take over.
"""

from __future__ import annotations

# Dynamic metadata namespaces.
METADATA = "gateway"
"""What the gateway knows of a request; access logs may print it."""
METADATA_PLAN = "gateway.plan"
"""The typed plan that Envoy's priority_group specifier executes; always written together with `plan`."""
METADATA_PRIVATE = "gateway.private"
"""The first provider error; it may quote a prompt, so no log formatter may ever name it."""

METADATA_USAGE = "gateway.usage"
"""Token counts of the answer: numbers only, written by Envoy's own readers of answers."""

# Keys of METADATA.
M_ID = "id"
M_VERSION = "version"
M_POLICY = "policy"
M_KIND = "kind"
M_PROTOCOL = "protocol"
M_CLIENT = "client"
M_MODEL = "model"
M_QUERY = "query"
M_TICKET = "ticket"
M_ENDPOINT = "endpoint"
M_OPERATION = "operation"
"""What traces call the endpoint."""
M_ROUTE_MODE = "route_mode"
M_SERVED_BY = "served_by"
M_SERVED_MODEL = "served_model"
M_PLAN = "plan"
M_CLASSES = "classes"
M_ARRIVED = "arrived"
M_STARTED = "started"
M_ATTEMPT = "attempt"
M_CONTEXT = "context"
M_HIDE_USAGE = "hide_usage"
M_ERROR = "error"
"""The gateway's own error code, when that is what the caller got."""

# Keys of METADATA_PRIVATE.
P_STATUS = "first_status"
P_BODY = "first_body"
"""A body that is text; Envoy can answer with it."""
P_BYTES = "first_bytes"
"""Any other body, each byte a letter of Latin-1: metadata strings are UTF-8."""
P_HEADERS = "first_headers"
P_PLAIN = "first_plain"

# Keys of METADATA_USAGE; each is a count of tokens.
U_INPUT = "input"
U_OUTPUT = "output"
U_CACHED = "cached"
U_CACHE_WRITE = "cache_write"
U_REASONING = "reasoning"
USAGE_KEYS = (U_INPUT, U_OUTPUT, U_CACHED, U_CACHE_WRITE, U_REASONING)

# Response headers that callers see.
H_REQUEST_ID = "x-request-id"
H_ROUTE_MODE = "x-gateway-route-mode"
H_SERVED_BY = "x-gateway-served-by"
H_ATTEMPTS = "x-gateway-attempts"
H_VERSION = "x-gateway-config-version"
H_SHOULD_RETRY = "x-should-retry"

# Headers between us and Envoy's router; they never leave.
H_RETRY = "x-gateway-retry"
H_MAX_RETRIES = "x-envoy-max-retries"
H_ATTEMPT_COUNT = "x-envoy-attempt-count"

# Request header of an active check: the cluster it is for.
H_CHECK_CLUSTER = "x-gateway-check-cluster"

# gRPC initial metadata on our own streams: which filter is calling, and from which cluster.
G_ROLE = "x-gateway-role"
G_CLUSTER = "x-gateway-cluster"
ROLE_ROUTE = "route"
ROLE_ATTEMPT = "attempt"
ROLE_JUDGE = "judge"

# Clusters that are not providers.
CLUSTER_STOP = "gateway-stop"
"""No endpoints: what a request without a plan runs into."""
CLUSTER_END = "gateway-end"
"""Last group of every plan: its attempt request lets Python answer for a plan whose attempts are all spent."""
CLUSTER_EXTPROC = "gateway-extproc"
CLUSTER_LOGS = "gateway-logs"
INTERNAL_CLUSTERS = frozenset({CLUSTER_STOP, CLUSTER_END, CLUSTER_EXTPROC, CLUSTER_LOGS})

ADDRESS_FILTER = "envoy.filters.http.upstream_rbac"
"""The upstream filter that refuses addresses; also the metadata namespace in which Envoy tells its verdict."""

# Access logs over gRPC.
LOG_REQUESTS = "gateway-requests"
LOG_ATTEMPTS = "gateway-attempts"

# ImmediateResponse details: local_reply_config lets bodies with this prefix through unchanged.
DETAILS_OWN = "gateway_own"

# Envoy's own details of what it ended without a flag.
DETAILS_ADDRESS = "rbac_access_denied"
"""The address filter refused."""
DETAILS_DURATION = "max_duration_timeout"
"""`max_duration` ran out."""
DETAILS_HTTP_1_0 = "low_version"
"""The caller speaks HTTP/1.0."""
DETAILS_TOO_LARGE = "response_payload_too_large"
"""An answer that is held to read its usage is larger than the connection's buffer."""

ACCOUNT_HEADERS = (
    "openai-organization",
    "openai-project",
    "x-goog-user-project",
)
"""Which account a key is used for. SDKs send them from the caller's environment; beside our key a foreign one is a 401,
and that would take the whole account out for every caller. https://platform.openai.com/docs/api-reference/authentication,
https://cloud.google.com/apis/docs/system-parameters"""

# Credentials and internal headers of callers that no provider may see, though a config may set an account header for
# one; see docs/envoy.md section 3.
CREDENTIAL_HEADERS = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
    *ACCOUNT_HEADERS,
    "cookie",
    "forwarded",
    "x-real-ip",
    "via",
)
SHARED_HEADERS = frozenset(
    {"accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta", "user-agent"}
)
"""Headers of the protocols themselves: a caller's own reach every provider, though a config may set them for one."""
INTERNAL_PREFIXES = ("x-envoy-", "x-gateway-", "x-forwarded-")
RESPONSE_PREFIXES = ("x-envoy-", "x-gateway-")
