"""The errors of stores, artifacts and sessions, one tree; every message is one line: what, where, what to do.

ClusterError
|-- BadInputError              what the user gave cannot be used (the commands exit with 2)
|   |-- ClaimMismatchError     the folder belongs to another command
|   |-- ArtifactMissingError   nothing committed there
|   |-- WrongKindError         an artifact of another kind
|   `-- MisplacedError         a folder where a file is wanted, or the reverse (an ObjectDeniedError too)
|-- StoreError                 the world failed (exit 1)
|   |-- RetryableStoreError    throttled, timed out, reset, 5xx, and still so after all retries
|   `-- PermanentStoreError    denied, wrong secret, no such bucket, read-only folder, disk full
|       |-- ObjectMissingError
|       |-- ObjectDeniedError  one object that is not given, by a store that answers
|       `-- AlreadyExistsError a put-if-absent that found something
|-- IntegrityError             size, checksum or rows differ from what a manifest says (exit 1)
`-- JobFailedError             too many rejects, a lost race for a commit, training that failed (exit 1)
    `-- LostRaceError          another writer committed this version first
"""


class ClusterError(Exception):
    """Root of every error that this package raises on purpose."""


class BadInputError(ClusterError):
    """What the user gave cannot be used."""


class ClaimMismatchError(BadInputError):
    """The folder belongs to another command."""


class ArtifactMissingError(BadInputError):
    """Nothing is committed there."""


class WrongKindError(BadInputError):
    """An artifact of another kind."""


class StoreError(ClusterError):
    """A store did not do what it was asked."""


class RetryableStoreError(StoreError):
    """It may work later: throttling, time-outs, resets."""


class PermanentStoreError(StoreError):
    """It will not work until somebody changes something."""


class ObjectMissingError(PermanentStoreError):
    """No such object."""


class ObjectDeniedError(PermanentStoreError):
    """This one object is not given: denied, archived, or of a name that none can have. The store itself answers."""


class MisplacedError(ObjectDeniedError, BadInputError):
    """A folder where a file is wanted, or a file where a folder is."""


class AlreadyExistsError(PermanentStoreError):
    """A put-if-absent found an object."""


class IntegrityError(ClusterError):
    """Stored bytes differ from what a manifest says."""


class JobFailedError(ClusterError):
    """A job did its work and did not succeed."""


class LostRaceError(JobFailedError):
    """Another writer committed this version of an artifact first."""
