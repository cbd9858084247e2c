//! Linux's error numbers, as [`SockError`](crate::SockError) and [`FileError`](crate::FileError) hold them. For crates that
//! use no system calls themselves.

pub use libc::{
    EBADF, ECANCELED, ECONNREFUSED, ECONNRESET, EDQUOT, EFBIG, EHOSTUNREACH, EINVAL, EIO, ENETUNREACH,
    ENODEV, ENOLINK, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, EROFS, ESTALE, ETIMEDOUT,
};
