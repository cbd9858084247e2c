//! The `bdev_*` methods for memory, null and file backends.

use crate::Change;
use crate::engine::view::View;
use crate::error::{Fault, Refusal};
use crate::jsonrpc::RpcError;
use crate::methods::Methods;
use crate::methods::Reply;
use crate::methods::params::{Name, None};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::path::PathBuf;
use trefoil_config::{Backend, BackendType, Bytes};
use uuid::Uuid;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ram {
    num_blocks: u64,
    block_size: u32,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    uuid: Option<Uuid>,
    /// Ignored: a write of less than a physical block is slower, but correct.
    #[serde(default, rename = "physical_block_size")]
    _physical_block_size: IgnoredAny,
    #[serde(default, rename = "optimal_io_boundary")]
    _optimal_io_boundary: IgnoredAny,
    #[serde(default, rename = "numa_id")]
    _numa_id: IgnoredAny,
    #[serde(default, rename = "preferred_write_alignment")]
    _preferred_write_alignment: IgnoredAny,
    #[serde(default, rename = "preferred_write_granularity")]
    _preferred_write_granularity: IgnoredAny,
    #[serde(default, rename = "optimal_write_size")]
    _optimal_write_size: IgnoredAny,
    #[serde(default, rename = "preferred_unmap_alignment")]
    _preferred_unmap_alignment: IgnoredAny,
    #[serde(default, rename = "preferred_unmap_granularity")]
    _preferred_unmap_granularity: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileBdev {
    name: String,
    filename: PathBuf,
    #[serde(default)]
    block_size: Option<u32>,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default, rename = "fallocate")]
    _fallocate: IgnoredAny,
    #[serde(default, rename = "nowait")]
    _nowait: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetBdevs {
    #[serde(default)]
    name: Option<String>,
    /// Ignored, because to wait is useless: no bdev appears by itself.
    #[serde(default, rename = "timeout")]
    _timeout: IgnoredAny,
}

pub(crate) async fn bdev_malloc_create(methods: &Methods, p: Ram) -> Reply {
    create_ram(methods, p, BackendType::Memory, "Malloc").await
}

pub(crate) async fn bdev_null_create(methods: &Methods, p: Ram) -> Reply {
    create_ram(methods, p, BackendType::Null, "Null").await
}

async fn create_ram(methods: &Methods, p: Ram, kind: BackendType, prefix: &str) -> Reply {
    let name = match p.name {
        Some(name) => name,
        Option::None => free_name(&methods.view().await?, prefix),
    };
    let size = p
        .num_blocks
        .checked_mul(u64::from(p.block_size))
        .ok_or_else(|| RpcError::params("num_blocks: `num_blocks` times `block_size` is too large"))?;
    let backend = Backend {
        size: Some(Bytes(size)),
        block_bytes: Some(p.block_size),
        ..Backend::new(name.clone(), kind)
    };
    methods.change(Change::BdevCreate { backend, uuid: p.uuid }).await?;
    Ok(name.into())
}

/// Returns the first free name of `Malloc0`, `Malloc1`, and so on.
fn free_name(view: &View, prefix: &str) -> String {
    let state = &view.state;
    let taken = |name: &String| state.backends.contains_key(name) || state.luns.contains_key(name);
    (0u32..).map(|n| format!("{prefix}{n}")).find(|name| !taken(name)).unwrap_or_default()
}

pub(crate) async fn bdev_aio_create(methods: &Methods, p: FileBdev) -> Reply {
    bdev_uring_create(methods, p).await
}

/// Makes a file backend. The backend uses io_uring, whichever of the two methods makes it.
pub(crate) async fn bdev_uring_create(methods: &Methods, p: FileBdev) -> Reply {
    let backend = Backend {
        path: Some(p.filename),
        // SPDK's clients send 0 to ask for the file's own block size.
        block_bytes: p.block_size.filter(|&bytes| bytes != 0),
        ..Backend::new(p.name.clone(), BackendType::File)
    };
    methods.change(Change::BdevCreate { backend, uuid: p.uuid }).await?;
    Ok(p.name.into())
}

pub(crate) async fn bdev_malloc_delete(methods: &Methods, p: Name) -> Reply {
    delete(methods, p.name, BackendType::Memory).await
}

pub(crate) async fn bdev_null_delete(methods: &Methods, p: Name) -> Reply {
    delete(methods, p.name, BackendType::Null).await
}

pub(crate) async fn bdev_file_delete(methods: &Methods, p: Name) -> Reply {
    delete(methods, p.name, BackendType::File).await
}

async fn delete(methods: &Methods, name: String, kind: BackendType) -> Reply {
    let view = methods.view().await?;
    let is_kind = view.state.backends.get(&name).is_some_and(|b| b.kind == kind);
    if !is_kind {
        let what = format!("there is no {} bdev `{name}`", kind.as_str());
        return Err(Refusal::new(Fault::NotFound, what).into());
    }
    methods.change(Change::BdevDelete { name }).await?;
    Ok(true.into())
}

pub(crate) async fn bdev_wait_for_examine(methods: &Methods, _: None) -> Reply {
    methods.view().await?;
    Ok(true.into())
}

pub(crate) async fn bdev_get_bdevs(methods: &Methods, p: GetBdevs) -> Reply {
    let view = methods.view().await?;
    if let Some(name) = &p.name
        && !view.state.luns.contains_key(name)
    {
        return Err(Refusal::new(Fault::NotFound, format!("there is no bdev `{name}`")).into());
    }
    let names = view.state.luns.keys().filter(|name| p.name.as_ref().is_none_or(|p| p == *name));
    Ok(names.filter_map(|name| render(&view, name)).collect())
}

fn render(view: &View, name: &str) -> Option<Value> {
    let lun = view.state.luns.get(name)?;
    let place = view.luns.get(name)?;
    let kind = lun.backend.as_ref().and_then(|b| view.state.backends.get(b)).map(|b| b.kind);
    let product = match kind {
        Some(BackendType::Memory) => "Malloc disk",
        Some(BackendType::Null) => "Null disk",
        Some(BackendType::File) => "URING bdev",
        Some(BackendType::NvmeTcp) => "NVMe disk",
        Option::None => "Trefoil LUN",
    };
    Some(json!({
        "name": name,
        "aliases": [lun.uuid],
        "product_name": product,
        "block_size": place.block_bytes,
        "num_blocks": place.len_bytes / u64::from(place.block_bytes),
        "uuid": lun.uuid,
        "claimed": view.state.exports(name).next().is_some(),
        "zoned": false,
        "supported_io_types": {
            "read": true, "write": !lun.read_only, "unmap": true, "flush": true, "reset": false,
            "nvme_admin": false, "nvme_io": false, "nvme_io_md": false, "write_zeroes": true,
            "zcopy": false, "get_zone_info": false, "zone_management": false, "zone_append": false,
            "compare": false, "compare_and_write": false, "abort": true, "seek_hole": false,
            "seek_data": false, "copy": false, "nvme_iov_md": false,
        },
        "driver_specific": {},
    }))
}
