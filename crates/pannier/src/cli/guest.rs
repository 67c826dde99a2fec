//! What a hypervisor is told to use a volume: libvirt disk XML, QEMU arguments.

use crate::api::types::Daemon;
use crate::client::{Client, encode_path};
use crate::output::{Failure, Printer};
use pannier_core::record::VolumePath;

/// Seconds for which QEMU and libvirt keep trying to reconnect before the guest sees an error: a
/// daemon is restarted or a host upgraded in that time.
const RECONNECT_SECONDS: u32 = 300;

pub(super) async fn xml(
    client: &Client,
    path: &VolumePath,
    target: &str,
    printer: &Printer,
) -> Result<(), Failure> {
    let text = disk_xml(path, &prepare(client, path).await?.nbd_socket, target);
    printer.result(&serde_json::json!({ "path": path.as_str(), "xml": text }), || text.clone());
    Ok(())
}

pub(super) async fn qemu(
    client: &Client,
    path: &VolumePath,
    printer: &Printer,
) -> Result<(), Failure> {
    let daemon = prepare(client, path).await?;
    let words = arguments(path, &daemon.nbd_socket);
    let result = serde_json::json!({
        "path": path.as_str(),
        "arguments": words,
        "uri": uri(path, &daemon.nbd_socket),
    });
    printer.result(&result, || {
        let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
        quoted.chunks(2).map(|pair| pair.join(" ")).collect::<Vec<_>>().join(" \\\n")
    });
    Ok(())
}

/// Makes sure that the volume exists and asks where NBD is served.
async fn prepare(client: &Client, path: &VolumePath) -> Result<Daemon, Failure> {
    client.get::<serde_json::Value>(&super::volume::url(path)).await?;
    client.get("/v1/daemon").await
}

fn export_name(path: &VolumePath) -> &str {
    path.as_str().trim_start_matches('/')
}

fn uri(path: &VolumePath, socket: &str) -> String {
    format!("nbd+unix://{}?socket={}", encode_path(path.as_str()), encode_path(socket))
}

fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

fn disk_xml(path: &VolumePath, socket: &str, target: &str) -> String {
    format!(
        "<disk type='network' device='disk'>\n  \
           <driver name='qemu' type='raw' cache='none' discard='unmap' detect_zeroes='unmap'/>\n  \
           <source protocol='nbd' name='{name}'>\n    \
             <host transport='unix' socket='{socket}'/>\n    \
             <reconnect delay='{RECONNECT_SECONDS}'/>\n  \
           </source>\n  \
           <target dev='{target}' bus='virtio'/>\n\
         </disk>",
        name = escape_xml(export_name(path)),
        socket = escape_xml(socket),
        target = escape_xml(target),
    )
}

/// QEMU's option syntax doubles a comma within a value.
fn escape_option(text: &str) -> String {
    text.replace(',', ",,")
}

/// A word as a shell reads it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn arguments(path: &VolumePath, socket: &str) -> Vec<String> {
    let node = "pannier0";
    let blockdev = format!(
        "driver=nbd,node-name={node},server.type=unix,server.path={},export={},\
         reconnect-delay={RECONNECT_SECONDS},open-timeout={RECONNECT_SECONDS},\
         cache.direct=on,discard=unmap,detect-zeroes=unmap",
        escape_option(socket),
        escape_option(export_name(path)),
    );
    let device = format!("virtio-blk-pci,drive={node}");
    vec!["-blockdev".into(), blockdev, "-device".into(), device]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_their_reader() {
        let path = VolumePath::parse("/a&b,c'd").unwrap();
        let xml = disk_xml(&path, "/run/<p>/nbd.sock", "vda");
        assert!(xml.contains("name='a&amp;b,c&apos;d'"), "{xml}");
        assert!(xml.contains("socket='/run/&lt;p&gt;/nbd.sock'"), "{xml}");
        assert!(xml.contains("<reconnect delay='300'/>"), "{xml}");
        let words = arguments(&path, "/s,t");
        assert!(words[1].contains("server.path=/s,,t,export=a&b,,c'd,"), "{words:?}");
        assert!(words[1].contains("reconnect-delay=300"), "{words:?}");
        assert_eq!((quote("a=b,c"), quote("it's")), ("a=b,c".into(), "'it'\\''s'".into()));
        assert_eq!(uri(&path, "/x y"), "nbd+unix:///a%26b%2Cc%27d?socket=/x%20y");
    }
}
