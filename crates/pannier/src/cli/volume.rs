//! `pannier volume`.

use super::args::Volume;
use super::size::NewSize;
use super::{guest, status, transfer};
use crate::api::types::{CreateVolume, ResizeVolume, Volume as Shown, VolumeEntry, VolumeList};
use crate::client::{Client, encode_path};
use crate::output::{Failure, Printer, bytes, table};
use hyper::Method;
use pannier_core::record::VolumePath;

pub(super) async fn run(
    client: &Client,
    command: Volume,
    printer: &Printer,
) -> Result<(), Failure> {
    match command {
        Volume::Create { path, size, shared } => {
            create(client, &path, size.0, shared, printer).await
        }
        Volume::List => list(client, printer).await,
        Volume::Show { path } => {
            let shown: Shown = client.get(&url(&path)).await?;
            printer.result(&shown, || status::volume(&shown));
            Ok(())
        }
        Volume::Delete { path, force } => {
            let query = if force { "?force=true" } else { "" };
            client.call::<()>(Method::DELETE, &format!("{}{query}", url(&path))).await?;
            printer.result(&serde_json::json!({ "deleted": path.as_str() }), || {
                format!("deleted {path}")
            });
            Ok(())
        }
        Volume::Resize { path, size } => resize(client, &path, size, printer).await,
        Volume::Import { file, path } => transfer::import(client, &file, &path, printer).await,
        Volume::Export { path, file, overwrite } => {
            transfer::export(client, &path, &file, overwrite, printer).await
        }
        Volume::Xml { path, target } => guest::xml(client, &path, &target, printer).await,
        Volume::Qemu { path } => guest::qemu(client, &path, printer).await,
        Volume::Release { path } => {
            let at = format!("/v1/release{}", encode_path(path.as_str()));
            client.call::<()>(Method::POST, &at).await?;
            printer.result(&serde_json::json!({ "released": path.as_str() }), || {
                format!("{path}: the write right is free; the next writer takes it")
            });
            Ok(())
        }
    }
}

/// The URL of a volume.
pub(super) fn url(path: &VolumePath) -> String {
    format!("/v1/volumes{}", encode_path(path.as_str()))
}

pub(super) async fn create(
    client: &Client,
    path: &VolumePath,
    size_bytes: u64,
    shared: bool,
    printer: &Printer,
) -> Result<(), Failure> {
    let body = CreateVolume { path: path.to_string(), size_bytes, shared };
    let made: VolumeEntry = client.send(Method::POST, "/v1/volumes", &body).await?;
    printer.result(&made, || {
        format!("created {path}, {}, on {} at {}", bytes(size_bytes), made.owner, made.site)
    });
    Ok(())
}

async fn list(client: &Client, printer: &Printer) -> Result<(), Failure> {
    let list: VolumeList = client.get("/v1/volumes").await?;
    printer.result(&list, || {
        if list.volumes.is_empty() {
            return "no volumes yet; `pannier volume create /vms/web/disk0 --size 20G` makes one"
                .to_owned();
        }
        let rows: Vec<_> = list
            .volumes
            .iter()
            .map(|volume| {
                let moving = volume.moving_to.as_ref();
                vec![
                    volume.path.clone(),
                    bytes(volume.size_bytes),
                    volume.site.clone(),
                    volume.owner.clone(),
                    moving.map_or_else(String::new, |to| format!("moving to {to}")),
                ]
            })
            .collect();
        table(&["PATH", "SIZE", "SITE", "OWNER", ""], &rows)
    });
    Ok(())
}

async fn resize(
    client: &Client,
    path: &VolumePath,
    size: NewSize,
    printer: &Printer,
) -> Result<(), Failure> {
    let size_bytes = match size {
        NewSize::Is(size_bytes) => size_bytes,
        NewSize::Plus(more) => {
            let list: VolumeList = client.get("/v1/volumes").await?;
            let known = list.volumes.iter().find(|volume| volume.path == path.as_str());
            known.map_or(0, |volume| volume.size_bytes).saturating_add(more)
        }
    };
    client.send::<_, ()>(Method::PATCH, &url(path), &ResizeVolume { size_bytes }).await?;
    let result = serde_json::json!({ "path": path.as_str(), "size_bytes": size_bytes });
    printer.result(&result, || {
        format!(
            "{path} has {} now; a running guest sees it after `virsh blockresize` or a reconnect",
            bytes(size_bytes)
        )
    });
    Ok(())
}
