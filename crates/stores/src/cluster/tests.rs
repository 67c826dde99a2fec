use super::identity::hex;
use super::*;
use crate::peer::Transport;
use crate::registry::Place;
use pannier_core::ids::HostId;
use pannier_engine::error::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A first host that serves joins, and its token book.
struct FirstHost {
    _directory: tempfile::TempDir,
    identity: Identity,
    transport: Transport,
    book: TokenBook,
}

impl FirstHost {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = init(&directory.path().join("identity"), "127.0.0.1:1", None).unwrap();
        let transport = Transport::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let is_taken = |name: &str| name == "taken";
        let service = JoinService::open(&identity, identity.registry().clone(), is_taken);
        transport.serve_join(service.unwrap());
        let book = TokenBook::open(&identity).unwrap();
        Self { _directory: directory, identity, transport, book }
    }

    fn token(&self) -> Token {
        self.book.issue(&self.transport.address().to_string(), None).unwrap()
    }
}

#[test]
fn init_makes_an_identity_that_only_its_owner_reads() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    assert_eq!(Identity::load(&home).unwrap_err().kind(), ErrorKind::NotFound);
    let identity = init(&home, "10.0.0.1:7000", None).unwrap();
    assert_ne!(identity.host().0, 0);
    assert!(identity.holds_authority());
    assert_eq!(identity.registry(), &embedded(&identity, "10.0.0.1:7000"));
    assert_eq!(mode(&home), 0o700);
    for file in std::fs::read_dir(&home).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    let again = Identity::load(&home).unwrap();
    assert_eq!(again.host(), identity.host());
    assert!(again.hash_key() == identity.hash_key());
    // A second init neither overwrites nor leaves anything.
    assert_eq!(init(&home, "x:1", None).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

fn embedded(on: &Identity, address: &str) -> Place {
    Place::Host { host: on.host(), address: address.to_owned() }
}

#[test]
fn a_damaged_or_open_identity_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    init(&home, "127.0.0.1:1", None).unwrap();
    let host_key = home.join("host.key");
    std::fs::set_permissions(&host_key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load(&home).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.context().contains("host.key") && error.context().contains("chmod"), "{error}");
    std::fs::set_permissions(&host_key, std::fs::Permissions::from_mode(0o600)).unwrap();
    for (name, bytes) in [
        ("hash.key", "12"),
        ("hash.key", &"ä".repeat(32)),
        ("registry", "nonsense"),
        ("host.key", "not pem"),
        ("host.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("ca.crt", ""),
    ] {
        let path = home.join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = Identity::load(&home).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.context().contains(name), "{error}");
        std::fs::write(&path, good).unwrap();
    }
    std::fs::remove_file(home.join("host.crt")).unwrap();
    assert_eq!(Identity::load(&home).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn tokens_survive_text_and_nothing_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let identity = init(&directory.path().join("identity"), "127.0.0.1:1", None).unwrap();
    let token = TokenBook::open(&identity).unwrap().issue("host:7000", None).unwrap();
    let text = token.to_string();
    assert!(text.parse::<Token>().unwrap() == token);
    assert!(format!("  {text}\n").parse::<Token>().unwrap() == token);
    assert!(!format!("{token:?}").contains(&hex(&token.secret)));
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let error = String::from_utf8(bytes).unwrap().parse::<Token>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{at}");
        assert!(text[..at].parse::<Token>().is_err(), "cut at {at}");
    }
    for bad in ["", "pannier1.", "pannier2.AAAA", "pannier1.!", &"pannier1.A".repeat(1000)] {
        assert!(bad.parse::<Token>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_token_lets_one_host_in() {
    let first = FirstHost::start();
    let token = first.token();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let joined = join(&home, &token, None).await.unwrap();
    assert_ne!(joined.host(), first.identity.host());
    assert!(joined.hash_key() == first.identity.hash_key());
    assert_eq!(joined.registry(), &embedded(&first.identity, token.address()));
    assert!(!joined.holds_authority());
    assert_eq!(joined.fingerprint(), first.identity.fingerprint());
    // Nothing but the identity is there, and of the authority only its certificate.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let mut names: Vec<_> = std::fs::read_dir(&home)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "hash.key", "host.crt", "host.key", "registry"]);
    assert_eq!(TokenBook::open(&joined).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(JoinService::open(&joined, joined.registry().clone(), |_| false).is_err());
    // Joining over an identity is refused before anything is sent.
    assert_eq!(join(&home, &first.token(), None).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_taken_name_costs_no_token() {
    let first = FirstHost::start();
    let token = first.token();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let refused = join(&home, &token, Some("taken")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.context().contains("`taken`"), "{refused}");
    assert!(!home.exists());
    // The same token and directory, with another name.
    let joined = join(&home, &token, Some("free")).await.unwrap();
    assert_eq!(Identity::load(&home).unwrap().host(), joined.host());
}

#[tokio::test]
async fn bad_tokens_get_nothing() {
    let first = FirstHost::start();
    let other = FirstHost::start();
    let good = first.token();
    let used = first.token();
    let spent = tempfile::tempdir().unwrap();
    join(&spent.path().join("identity"), &used, None).await.unwrap();
    let expired =
        first.book.issue(&first.transport.address().to_string(), Some(Duration::ZERO)).unwrap();
    let with = |change: fn(&mut Token)| {
        let mut token = good.clone();
        change(&mut token);
        token
    };
    let elsewhere = good.clone().through(&other.transport.address().to_string());
    let foreign = other.token().through(&first.transport.address().to_string());
    for (what, token, kind, says) in [
        ("secret", with(|token| token.secret[31] ^= 1), ErrorKind::Invalid, "does not know"),
        ("id", with(|token| token.id[0] ^= 1), ErrorKind::Invalid, "does not know"),
        ("used", used, ErrorKind::Invalid, "used already"),
        ("expired", expired, ErrorKind::Invalid, "has expired"),
        ("authority", with(|token| token.authority[0] ^= 1), ErrorKind::Unavailable, "not that"),
        ("host", with(|token| token.host.0 ^= 1), ErrorKind::Unavailable, "not that"),
        ("way to another cluster", elsewhere, ErrorKind::Unavailable, "not that"),
        ("token of another cluster", foreign, ErrorKind::Unavailable, "not that"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("identity");
        let error = join(&home, &token, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.context().contains(says), "{what}: {error}");
        assert!(!home.exists(), "{what}");
        let left = directory.path().join("identity.joining");
        for secret in ["hash.key", "host.crt", "ca.crt"] {
            assert!(!left.join(secret).exists(), "{what}: {secret}");
        }
    }
    // None of that has used the good one up.
    let directory = tempfile::tempdir().unwrap();
    join(&directory.path().join("identity"), &good, None).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again_by_the_same_host_only() {
    let first = FirstHost::start();
    let token = first.token();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    // The first attempt draws its request and reaches nobody.
    let nowhere = token.clone().through("127.0.0.1:9");
    assert!(
        tokio::time::timeout(Duration::from_millis(200), join(&home, &nowhere, None))
            .await
            .is_err()
    );
    let request = std::fs::read(directory.path().join("identity.joining/host.csr")).unwrap();
    // The second is served, but its answer is lost.
    let asked = *blake3::hash(&request).as_bytes();
    let host = first.book.redeem(&token.id, &token.secret, &asked, || Ok(HostId(5))).unwrap();
    assert_eq!(host, HostId(5));
    // Who only saw the token pass gets nothing.
    let thief = tempfile::tempdir().unwrap();
    let error = join(&thief.path().join("identity"), &token, None).await.unwrap_err();
    assert!(error.context().contains("used already"), "{error}");
    // The third is answered as the second was.
    assert_eq!(join(&home, &token, None).await.unwrap().host(), HostId(5));
}

#[tokio::test]
async fn a_bad_signing_request_does_not_use_the_token_up() {
    let first = FirstHost::start();
    let token = first.token();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let joining = directory.path().join("identity.joining");
    std::fs::create_dir(&joining).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let mut bytes = request.der().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    for bad in [bytes, b"nonsense".to_vec(), Vec::new()] {
        std::fs::write(joining.join("host.csr"), bad).unwrap();
        let error = join(&home, &token, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.context().contains("signing request"), "{error}");
    }
    std::fs::remove_dir_all(&joining).unwrap();
    join(&home, &token, None).await.unwrap();
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let first = FirstHost::start();
    let token = first.token();
    first.transport.close().await;
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let attempt = tokio::time::timeout(Duration::from_secs(30), join(&home, &token, None)).await;
    let error = attempt.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("join through 127.0.0.1"), "{error}");
}

#[test]
fn expired_records_are_swept() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let identity = init(&home, "127.0.0.1:1", None).unwrap();
    let book = TokenBook::open(&identity).unwrap();
    let old = book.issue("a:1", None).unwrap();
    let live = book.issue("a:1", None).unwrap();
    let path = home.join("tokens").join(hex(&old.id));
    let record = std::fs::read(&path).unwrap();
    // The expiry is the varint behind the secret's hash: make it 1970.
    let mut short = record[..32].to_vec();
    short.extend([1, 0]);
    std::fs::write(&path, short).unwrap();
    book.issue("a:1", None).unwrap();
    assert!(!path.exists());
    assert!(home.join("tokens").join(hex(&live.id)).exists());
    assert_eq!(std::fs::read_dir(home.join("tokens")).unwrap().count(), 2);
}
