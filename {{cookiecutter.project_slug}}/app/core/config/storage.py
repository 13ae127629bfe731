import re
from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.core.config.base import Folder, GeneralSettings, Url, is_deployed
from app.core.project import ROOT

LOCAL_STORAGE_FOLDER = ROOT / "data" / "files"
REGION_NAME = re.compile(r"[A-Za-z0-9_-]+")
# Without slashes and commas, which separate the parts of S3's Authorization header.
ACCESS_KEY_ID = re.compile(r"[!-+.0-~-]+")
BUCKET_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class StorageSettings(GeneralSettings, title="Files"):
    storage_folder: Folder | None = Field(
        default=None,
        description="Folder of the stored files; all servers and containers that run the service must share the folder."
        " Unset, without `STORAGE_S3_BUCKET`: `data/files` if `ENVIRONMENT` is local or test; otherwise routes that"
        " store files answer 503.",
    )
    storage_s3_bucket: str | None = Field(
        default=None,
        description="Bucket (AWS S3 or a compatible store) that holds the files instead of `STORAGE_FOLDER`.",
    )
    storage_s3_endpoint: Url | None = Field(
        default=None,
        description="URL of an S3-compatible store such as MinIO or SeaweedFS. Unset: AWS.",
    )
    storage_s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    storage_s3_access_key_id: str | None = Field(
        default=None,
        description="ID of the access key for the bucket. Unset: the machine's role on AWS.",
    )
    storage_s3_secret_access_key: SecretStr | None = Field(
        default=None,
        description="Secret that belongs to `STORAGE_S3_ACCESS_KEY_ID`.",
    )

    @field_validator("storage_folder")
    @classmethod
    def require_absolute_folder(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.is_absolute() and is_deployed(info):
            raise ValueError(
                "must be an absolute path: a relative one is inside the installed version of the service, which a later"
                " deployment deletes"
            )
        return value

    @field_validator("storage_s3_bucket")
    @classmethod
    def check_bucket(cls, value: str | None) -> str | None:
        if value is not None and not BUCKET_NAME.fullmatch(value):
            raise ValueError(
                "must be 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends and"
                " no two dots in a row"
            )
        return value

    @field_validator("storage_s3_region")
    @classmethod
    def check_region(cls, value: str) -> str:
        if not REGION_NAME.fullmatch(value):
            raise ValueError("must be a name such as us-east-1, of letters, digits, hyphens and underscores")
        return value

    @field_validator("storage_s3_access_key_id")
    @classmethod
    def check_key_id(cls, value: str | None) -> str | None:
        if value is not None and not ACCESS_KEY_ID.fullmatch(value):
            raise ValueError(
                "must consist of ASCII letters, digits and punctuation, without a space, a slash or a comma"
            )
        return value

    @field_validator("storage_s3_endpoint", "storage_s3_access_key_id")
    @classmethod
    def require_bucket(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("storage_s3_bucket", "invalid") is None:
            raise ValueError("has no effect without a bucket: set STORAGE_S3_BUCKET")
        return value

    @field_validator("storage_s3_secret_access_key")
    @classmethod
    def require_whole_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        key_id = info.data.get("storage_s3_access_key_id", "invalid")
        if key_id != "invalid" and (value is None) != (key_id is None):
            raise ValueError("must be set together with STORAGE_S3_ACCESS_KEY_ID: set both, or neither")
        return value

    @property
    def files_folder(self) -> Path | None:
        """The folder for files if no bucket is configured; None in staging and production without STORAGE_FOLDER."""
        if self.storage_folder is not None:
            return ROOT / self.storage_folder
        return None if self.environment.is_deployed else LOCAL_STORAGE_FOLDER

    @property
    def stores_files(self) -> bool:
        return self.storage_s3_bucket is not None or self.files_folder is not None
