"""What an S3 server means when it does not do what it is asked to: what will pass, and what to do about the rest."""

from __future__ import annotations

from hpo_core.errors import NotFound, StoreError, TransientError
from hpo_core.objects.settings import SINGLE_WRITER

MISSING = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
"""Codes for an object that is not there."""
EXISTING = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
"""Codes for a bucket that was to be made and is there."""

_NEXT_STEPS = {
    "AccessDenied": "its credentials do not allow this; ask for s3:ListBucket, GetObject, PutObject and DeleteObject "
    "below the prefix, and for s3:GetBucketLocation unless AWS_REGION is set",
    "InvalidAccessKeyId": "it does not know the access key; check AWS_ACCESS_KEY_ID or MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or MINIO_SECRET_KEY",
    "InvalidTokenId": "the session token is wrong; check AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is wrong; check AWS_SESSION_TOKEN",
    "ExpiredToken": "the session token has expired; get new credentials",
    "RequestTimeTooSkewed": "the clock of this machine differs from the server's by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": "it is in another region; set AWS_REGION",
    "PermanentRedirect": "it is in another region; set AWS_REGION",
    "TemporaryRedirect": "it is in another region; set AWS_REGION",
    "InvalidBucketName": "that is no name for a bucket; take 3 to 63 small letters, digits, '-' and '.'",
    "NotImplemented": f"it lacks something that is needed; use another server, or set {SINGLE_WRITER}=yes if that is "
    "conditional writes and no two tuners ever run the same experiment",
}
_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded")
_PASSING = ("SlowDown", "RequestTimeout", "ConditionalRequestConflict", "BadDigest", "IncompleteBody")
"""Codes that come with a status of refusal all the same; MinIO tells some full disks by the last one."""


class NoBucket(NotFound):
    """The bucket is not there (yet), and so is nothing in it."""


class Refused(StoreError):
    """The server said no, and will say it again.

    Args:
        code: S3's name for the reason; "" when the answer is not S3's.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def refusal(attempt: str, code: str, status: int, told: str = "") -> Refused | TransientError:
    """Return the error for an answer that is no success.

    Args:
        attempt: What could not be done, and where.
        code: S3's name for the reason; "" when the answer is not S3's.
        status: Its HTTP status.
        told: What the server says of it; "" for nothing.
    """
    if code in _FULL or status == 507 or "no space left" in told:
        return TransientError(f"{attempt}: the server's disk or quota is full; make room there", 2.0)
    if code in _NEXT_STEPS:
        return Refused(f"{attempt}: {_NEXT_STEPS[code]} ({code})", code)
    if code in EXISTING:
        return Refused(f"{attempt}: {told}", code)
    if (status >= 500 and status != 501) or status in (408, 409, 429) or code in _PASSING:
        return TransientError(
            f"{attempt}: the server answers {code or status}{f' ({told})' if told else ''}; waiting for it"
        )
    if not code:
        advice = "check the server's address, and whether it wants http or https"
        return Refused(f"{attempt}: the answer is not S3's ({status}); {advice}", "")
    return Refused(f"{attempt}: the server answers {code}: {told}", code)
