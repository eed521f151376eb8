//! What is signed, what is refused, and what is said when the folder is damaged.

use super::*;
use rcgen::CustomExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const NOW: u64 = 1_790_000_000;
type Greed = (&'static str, fn(&mut CertificateParams));

fn authorities() -> (tempfile::TempDir, Authorities) {
    let folder = tempfile::tempdir().unwrap();
    let authorities = Authorities::open(&StateDir::at(folder.path()).unwrap(), "lab", NOW).unwrap();
    (folder, authorities)
}

fn step() -> CertificateStep {
    CertificateStep {
        ca: "etcd".to_owned(),
        common_name: "control1".to_owned(),
        organization: String::new(),
        sans: vec!["10.77.0.11".to_owned(), "control1".to_owned()],
        server: true,
        client: true,
        cert: "/etc/x.crt".to_owned(),
        key: "/etc/x.key".to_owned(),
        ca_cert: "/etc/ca.crt".to_owned(),
        ca_sha256: String::new(),
        owner: "root:root".to_owned(),
        life_hours: 24,
        renew_hours: 8,
    }
}

/// What an honest agent asks for.
fn honest(step: &CertificateStep) -> CertificateParams {
    let mut params = CertificateParams::new(step.sans.clone()).unwrap();
    params.distinguished_name = subject(&step.common_name, &step.organization);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn pem(params: &CertificateParams) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[test]
fn a_key_of_another_authority_is_refused() {
    let (folder, _authorities) = authorities();
    let pki = folder.path().join("pki");
    std::fs::copy(pki.join("data.key"), pki.join("etcd.key")).unwrap();
    let opened = Authorities::open(&StateDir::at(folder.path()).unwrap(), "lab", NOW);
    assert!(matches!(opened.err(), Some(PkiError::Strangers { ca, .. }) if ca == "etcd"));
}

#[test]
fn an_honest_request_gets_what_the_plan_grants() {
    let (_folder, authorities) = authorities();
    let signed = authorities.sign(&pem(&honest(&step())), &step(), NOW).unwrap();
    assert_eq!(signed.ca, authorities.certificate("etcd").unwrap());
    let der = rustls_pemfile::certs(&mut signed.cert.as_bytes()).next().unwrap().unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let ca = rustls_pemfile::certs(&mut signed.ca.as_bytes()).next().unwrap().unwrap();
    let (_, ca) = X509Certificate::from_der(&ca).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=control1");
    assert!(!leaf.is_ca());
    let life = leaf.validity();
    assert_eq!(life.not_before.timestamp(), i64::try_from(NOW - BACKDATE_S).unwrap());
    assert_eq!(life.not_after.timestamp(), i64::try_from(NOW + 24 * 3600).unwrap());
}

#[test]
fn two_certificates_of_one_key_have_different_serials() {
    let (_folder, authorities) = authorities();
    let request = pem(&honest(&step()));
    let first = authorities.sign(&request, &step(), NOW).unwrap();
    let second = authorities.sign(&request, &step(), NOW).unwrap();
    assert_ne!(first.cert, second.cert);
}

#[test]
fn a_request_that_asks_for_more_or_other_than_its_step_is_refused() {
    let (_folder, authorities) = authorities();
    let greedy: [Greed; 9] = [
        ("another name", |p| p.distinguished_name = subject("admin", "")),
        ("a group", |p| {
            p.distinguished_name = subject("control1", "system:masters");
        }),
        ("one more address", |p| {
            p.subject_alt_names.push(rcgen::SanType::IpAddress([10, 0, 0, 1].into()));
        }),
        ("fewer names", |p| p.subject_alt_names.clear()),
        ("no client usage", |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("code signing", |p| {
            p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning);
        }),
        ("to be an authority", |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        ("to sign certificates", |p| {
            p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }),
        ("an extension of its own", |p| {
            let odd = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            p.custom_extensions.push(odd);
        }),
    ];
    for (what, change) in greedy {
        let mut params = honest(&step());
        change(&mut params);
        let refused = authorities.sign(&pem(&params), &step(), NOW);
        assert!(refused.is_err(), "a request for {what} was signed");
    }
}

#[test]
fn a_request_whose_signature_was_changed_is_refused() {
    let (_folder, authorities) = authorities();
    let text = pem(&honest(&step()));
    let item = rustls_pemfile::read_one(&mut text.as_bytes()).unwrap();
    let Some(rustls_pemfile::Item::Csr(der)) = item else { panic!("{item:?}") };
    let mut der = der.to_vec();
    let at = der.windows(8).position(|window| window == b"control1").unwrap();
    der[at + 7] = b'2';
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    let refused = authorities.sign(&forged, &step(), NOW).unwrap_err();
    assert!(matches!(refused, SignError::Csr(CsrError::BadSignature)), "{refused}");
}

#[test]
fn authorities_stay_the_same_and_their_keys_are_private() {
    let (folder, first) = authorities();
    let state = StateDir::at(folder.path()).unwrap();
    let again = Authorities::open(&state, "lab", NOW + 999).unwrap();
    assert_eq!(first.fingerprints(), again.fingerprints());
    assert_eq!(first.fingerprints().len(), 4);
}

#[test]
fn half_an_authority_is_reported_and_not_replaced() {
    let (folder, _first) = authorities();
    std::fs::remove_file(folder.path().join("pki/etcd.key")).unwrap();
    let state = StateDir::at(folder.path()).unwrap();
    let Err(error) = Authorities::open(&state, "lab", NOW) else { panic!("it opened") };
    let (crt, key) = (folder.path().join("pki/etcd.crt"), folder.path().join("pki/etcd.key"));
    let text = format!("open the etcd authority: {} is there without {}", crt.display(), key.display());
    assert_eq!(error.to_string(), text);
    assert!(error.help().unwrap().contains("backup"));
    assert!(crt.exists());
}

#[test]
fn a_damaged_file_is_named_with_what_helps() {
    for file in ["pki/kubernetes.crt", "pki/kubernetes.key"] {
        let (folder, _first) = authorities();
        std::fs::write(folder.path().join(file), "not PEM").unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let Err(error) = Authorities::open(&state, "lab", NOW) else { panic!("{file} opened") };
        let path = folder.path().join(file);
        assert_eq!(error.to_string(), format!("open the kubernetes authority: read {}", path.display()));
        assert!(error.help().unwrap().contains("backup"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        let Err(error) = Authorities::open(&state, "lab", NOW) else { panic!("{file} opened") };
        assert_eq!(error.to_string(), format!("read {}", path.display()));
        assert!(error.help().unwrap().contains("backup"));
    }
}
