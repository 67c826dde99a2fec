use super::*;

/// What `read_image` passes on, put back together.
fn collect(image: &File, size: u64) -> (u64, Vec<u8>, Vec<(u64, usize)>) {
    let (sender, mut receiver) = mpsc::channel(1000);
    let sent = read_image(image, size, &sender, &AtomicU64::new(0), Path::new("image")).unwrap();
    drop(sender);
    let mut decoder = Decoder::default();
    let (mut disk, mut runs, mut ended) = (vec![0; size as usize], Vec::new(), false);
    while let Ok(bytes) = receiver.try_recv() {
        decoder.push(&bytes);
        while let Some(piece) = decoder.next().unwrap() {
            match piece {
                Piece::Data { offset, bytes } => {
                    runs.push((offset, bytes.len()));
                    disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Piece::End(at) => {
                    assert_eq!(at, size);
                    ended = true;
                }
            }
        }
    }
    assert!(ended);
    (sent, disk, runs)
}

#[test]
fn an_image_is_read_whole_and_thin() {
    let image = tempfile::tempfile().unwrap();
    // A hole, data, explicit zeroes, data that ends within a block.
    let size = (4 << 20) + 1000;
    image.set_len(size).unwrap();
    image.write_all_at(&[1; 8192], 1 << 20).unwrap();
    image.write_all_at(&[0; 1 << 20], 2 << 20).unwrap();
    image.write_all_at(&[2; 1000], 4 << 20).unwrap();
    let padded = size.next_multiple_of(SECTOR_BYTES);
    let (sent, disk, runs) = collect(&image, padded);
    assert_eq!(sent, 8192 + 1024);
    assert_eq!(runs, [(1 << 20, 8192), (4 << 20, 1024)]);
    let mut expect = vec![0; padded as usize];
    image.read_exact_at(&mut expect[..size as usize], 0).unwrap();
    assert!(disk == expect);
}

#[test]
fn images_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        open_image(&file).and_then(|image| image_bytes(&image, &file)).unwrap_err().0.message
    };
    assert!(message("q", b"QFI\xfb....").contains("qcow2"));
    assert!(message("e", b"").contains("is empty"));
    let folder = open_image(dir.path()).and_then(|image| image_bytes(&image, dir.path()));
    assert!(folder.unwrap_err().0.message.contains("is a folder"));
    let missing = open_image(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.0.kind, "not_found");
}
