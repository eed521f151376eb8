//! A certificate held against its step: a table of what may be wrong, and a life from issue to renewal.

use super::*;
use crate::controller::Silent;
use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

/// 2030-01-01: rcgen wants dates.
const NOW_S: u64 = 1_893_456_000;

/// A CA that signs whatever it is asked, as the controller does, for a month.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
    pem: String,
    asked: Mutex<u32>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { key, params, pem, asked: Mutex::new(0) }
    }

    fn sha256(&self) -> String {
        hash_bytes(&pem::certificate(self.pem.as_bytes()).unwrap())
    }

    fn sign(&self, csr: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.not_before = rcgen::date_time_ymd(2029, 12, 31);
        request.params.not_after = rcgen::date_time_ymd(2030, 2, 1);
        let issuer = Issuer::from_params(&self.params, &self.key);
        request.signed_by(&issuer).unwrap().pem()
    }
}

impl Controller for Authority {
    fn ask(&self, _: &str, ask: Ask, _: Duration) -> Result<Reply, StepError> {
        let Ask::Certificate { csr, .. } = ask else { panic!("only certificates are asked for") };
        *self.asked.lock().unwrap() += 1;
        Ok(Reply::Certificate { cert: self.sign(&csr), ca: self.pem.clone() })
    }
}

fn step(authority: &Authority, owner: String) -> CertificateStep {
    CertificateStep {
        ca: "etcd".to_owned(),
        common_name: "control1".to_owned(),
        organization: "rackwright:etcd".to_owned(),
        sans: vec!["10.77.0.11".to_owned(), "control1".to_owned(), "::1".to_owned()],
        server: true,
        client: true,
        cert: "/pki/etcd.crt".to_owned(),
        key: "/pki/etcd.key".to_owned(),
        ca_cert: "/pki/ca.crt".to_owned(),
        ca_sha256: authority.sha256(),
        owner,
        life_hours: 24 * 31,
        renew_hours: 240,
    }
}

fn me() -> String {
    let dir = tempfile::tempdir().unwrap();
    let metadata = fs::metadata(dir.path()).unwrap();
    format!("{}:{}", metadata.uid(), metadata.gid())
}

/// A certificate that is right, and everything that it is held against.
struct Sample {
    authority: Authority,
    wanted: CertificateStep,
    key: KeyPair,
    cert: String,
}

impl Sample {
    fn new() -> Self {
        let authority = Authority::new();
        let (wanted, key) = (step(&authority, me()), KeyPair::generate().unwrap());
        let cert = authority.sign(&request(&wanted, &key).unwrap());
        Self { authority, wanted, key, cert }
    }

    /// The one fault when the step is changed like this.
    fn changed(&self, change: impl Fn(&mut CertificateStep)) -> String {
        let mut wanted = self.wanted.clone();
        change(&mut wanted);
        one(&faults(&wanted, self.cert.as_bytes(), self.authority.pem.as_bytes(), Some(&self.key), NOW_S))
    }

    /// The one fault beside this CA, with this key, at this time.
    fn beside(&self, wanted: &CertificateStep, ca: &str, key: Option<&KeyPair>, now_s: u64) -> String {
        one(&faults(wanted, self.cert.as_bytes(), ca.as_bytes(), key, now_s))
    }
}

fn one(faults: &[Fault]) -> String {
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults[0].to_string()
}

#[test]
fn a_changed_step_names_what_changed() {
    let sample = Sample::new();
    let pem = sample.authority.pem.as_bytes();
    assert_eq!(faults(&sample.wanted, sample.cert.as_bytes(), pem, Some(&sample.key), NOW_S), []);
    assert_eq!(
        sample.changed(|wanted| wanted.common_name = "x".to_owned()),
        "subject CN=control1 O=rackwright:etcd -> CN=x O=rackwright:etcd"
    );
    assert_eq!(
        sample.changed(|wanted| wanted.organization.clear()),
        "subject CN=control1 O=rackwright:etcd -> CN=control1 O="
    );
    assert_eq!(
        sample.changed(|wanted| wanted.sans.truncate(1)),
        "names 10.77.0.11,::1,control1 -> 10.77.0.11"
    );
    assert_eq!(sample.changed(|wanted| wanted.client = false), "its extended key usage is another");
    assert_eq!(sample.changed(|wanted| wanted.ca_sha256.clear()), "it comes with another CA");
}

#[test]
fn another_authority_another_key_and_age_are_seen() {
    let (sample, stranger) = (Sample::new(), Authority::new());
    let (good, pem) = (&sample.wanted, &sample.authority.pem);
    let of_stranger = CertificateStep { ca_sha256: stranger.sha256(), ..good.clone() };
    let key = Some(&sample.key);
    assert_eq!(sample.beside(good, &stranger.pem, key, NOW_S), "it comes with another CA");
    assert_eq!(sample.beside(&of_stranger, &stranger.pem, key, NOW_S), "the CA did not sign it");
    assert_eq!(sample.beside(good, pem, None, NOW_S), "its key is missing or of another kind");
    let other = KeyPair::generate().unwrap();
    assert_eq!(sample.beside(good, pem, Some(&other), NOW_S), "it belongs to another key");
    assert_eq!(sample.beside(good, pem, key, NOW_S + 24 * 3600 * 22), "only 216 h are left");
    assert_eq!(sample.beside(good, "garbage", key, NOW_S), "certificate or CA cannot be read");
}

#[test]
fn a_certificate_is_issued_kept_and_renewed_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let wanted = step(&authority, me());
    let host = Host::new(dir.path(), NOW_S);
    assert_eq!(check(&host, &wanted).unwrap().unwrap().summary, "issue /pki/etcd.crt");
    apply(&host, "x/cert", &wanted, &authority).unwrap();
    assert_eq!(check(&host, &wanted).unwrap(), None);
    let key = fs::read(dir.path().join("pki/etcd.key")).unwrap();

    let later = Host::new(dir.path(), NOW_S + 24 * 3600 * 25);
    assert_eq!(check(&later, &wanted).unwrap().unwrap().summary, "renew /pki/etcd.crt (144 h left)");
    // The same authority issues until the same day: what comes back is too old and must not be taken.
    let error = apply(&later, "x/cert", &wanted, &authority).unwrap_err();
    assert_eq!(error.code, Code::CertificateRefused);
    assert_eq!(fs::read(dir.path().join("pki/etcd.key")).unwrap(), key);
    assert_eq!(*authority.asked.lock().unwrap(), 2);
}

#[test]
fn a_lost_mode_is_put_back_without_asking() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let wanted = step(&authority, me());
    let host = Host::new(dir.path(), NOW_S);
    apply(&host, "x/cert", &wanted, &authority).unwrap();
    let key = dir.path().join("pki/etcd.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(check(&host, &wanted).unwrap().unwrap().summary, "change mode or owner of /pki/etcd.crt");
    apply(&host, "x/cert", &wanted, &Silent).unwrap();
    assert_eq!(check(&host, &wanted).unwrap(), None);
}
