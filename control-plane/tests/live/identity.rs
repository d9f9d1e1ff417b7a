//! Certificates: by token, by instance key, by certificate; and who gets none.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tonic::Code;
use weft_proto::identity::CurrentCertificate;
use weft_proto::identity::sign_request::Credential;

use crate::support::{ControlPlane, DEADLINE, Sidecar};

#[tokio::test(flavor = "multi_thread")]
async fn enrol_renew_and_return() {
    let control_plane = ControlPlane::start().await;
    let token = control_plane.token("shop/web", &["shop/web"], &[80]).await;
    let mut sidecar = Sidecar::new(&control_plane);
    let credential = Credential::JoinToken(token.clone());
    let first = sidecar.sign(credential.clone()).await.unwrap();
    assert_eq!(first.identity, "spiffe://weft.local/ns/shop/sa/web");
    assert_eq!(first.workload, "shop/web");
    assert_eq!(first.services, ["shop/web"]);
    assert_eq!(first.ports, [80]);
    assert_eq!(first.not_after - first.issued, 24 * 3600);
    assert_eq!(first.chain.len(), 2, "without the root");
    assert_eq!(first.roots, [control_plane.root().to_vec()]);

    let again = sidecar.sign(credential.clone()).await.unwrap();
    assert_eq!(again.instance, first.instance, "a lost reply burns nothing");

    let renewed = sidecar
        .sign(Credential::CurrentCertificate(CurrentCertificate {}))
        .await
        .unwrap();
    assert_eq!(renewed.instance, first.instance);
    assert!(renewed.instance_key.is_empty());

    // A fresh key and no certificate, as after a long sleep and a restart of both.
    let control_plane = control_plane.restart().await;
    let mut returned = Sidecar::new(&control_plane);
    let key = Credential::InstanceKey(again.instance_key.clone());
    let attested = returned.sign(key).await.unwrap();
    assert_eq!(attested.instance, first.instance);

    let mut thief = Sidecar::new(&control_plane);
    let refused = thief.sign(credential).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("for another key"), "{refused}");
}

/// Names of service accounts are DNS subdomains in Kubernetes.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_with_dots() {
    let control_plane = ControlPlane::start().await;
    let token = control_plane
        .token_for("shop/web", Some("web.v1-2"), &["shop/web"], &[80])
        .await;
    let mut sidecar = Sidecar::new(&control_plane);
    let signed = sidecar.sign(Credential::JoinToken(token)).await.unwrap();
    assert_eq!(signed.identity, "spiffe://weft.local/ns/shop/sa/web.v1-2");
    let renewed = sidecar
        .sign(Credential::CurrentCertificate(CurrentCertificate {}))
        .await
        .unwrap();
    assert_eq!(renewed.identity, signed.identity);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused() {
    let control_plane = ControlPlane::start().await;
    let token = control_plane.token("shop/web", &[], &[]).await;
    let good = {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        csr.der().to_vec()
    };
    let rsa = {
        let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        csr.der().to_vec()
    };
    let sidecar = Sidecar::new(&control_plane);
    let join = |text: &str| Credential::JoinToken(text.to_owned());
    let guessed = format!("{}x", &token[..token.len() - 1]);
    let cases = [
        (
            join(&token),
            vec![1, 2, 3],
            Code::InvalidArgument,
            "not a signed PKCS #10 request",
        ),
        (join(&token), rsa, Code::InvalidArgument, "ECDSA P-256"),
        (
            join("weft1.x"),
            good.clone(),
            Code::Unauthenticated,
            "malformed",
        ),
        (
            join(&guessed),
            good.clone(),
            Code::Unauthenticated,
            "unknown",
        ),
        (
            Credential::InstanceKey("web-1.x".to_owned()),
            good.clone(),
            Code::Unauthenticated,
            "instance key is unknown",
        ),
        (
            Credential::CurrentCertificate(CurrentCertificate {}),
            good.clone(),
            Code::Unauthenticated,
            "needs a client certificate",
        ),
    ];
    for (credential, csr, code, expected) in cases {
        let error = sidecar.sign_csr(credential, csr).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    // None of that has burnt the token.
    sidecar.sign_csr(join(&token), good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_does_not_undo_a_revocation() {
    let control_plane = ControlPlane::start().await;
    let mut sidecar = control_plane.enrol("shop/web", &[]).await;
    let instance = sidecar.instance().to_owned();
    let renewing = tokio::spawn(async move {
        loop {
            let renewal = Credential::CurrentCertificate(CurrentCertificate {});
            match sidecar.sign(renewal).await {
                Err(error) if error.code() == Code::ResourceExhausted => {}
                Err(error) => return error,
                Ok(_) => {}
            }
        }
    });
    control_plane.revoke(&instance).await.unwrap();
    let refused = tokio::time::timeout(DEADLINE, renewing).await;
    let refused = refused.expect("renewed although revoked").unwrap();
    assert!(refused.message().contains("was revoked"), "{refused}");
    let control_plane = control_plane.restart().await;
    let certs = control_plane.get("/v1/certs").await;
    let found = certs
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["instance"] == instance.as_str());
    assert!(found.unwrap()["revoked"].is_i64(), "{certs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_for_one_of_many_keys() {
    let control_plane = ControlPlane::start().await;
    let token = control_plane.token("shop/web", &[], &[]).await;
    let racing = (0..8).map(|_| {
        let mut sidecar = Sidecar::new(&control_plane);
        let credential = Credential::JoinToken(token.clone());
        tokio::spawn(async move { sidecar.sign(credential).await })
    });
    let mut winners = Vec::new();
    for racing in racing.collect::<Vec<_>>() {
        match racing.await.unwrap() {
            Ok(signed) => winners.push(signed.instance),
            Err(error) => assert!(error.message().contains("for another key"), "{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let control_plane = control_plane.restart().await;
    let tokens = control_plane.get("/v1/tokens").await;
    assert_eq!(tokens[0]["redeemedBy"], winners[0].as_str(), "{tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn own_certificate_is_renewed_without_a_restart() {
    let control_plane = ControlPlane::start_with(&["--leaf-ttl", "10s"]).await;
    let sidecar = Sidecar::new(&control_plane);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(13) {
        sidecar
            .connect()
            .await
            .expect("a certificate that is valid now");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_with_wrong_credentials_starve_nobody() {
    let control_plane = ControlPlane::start().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let guessing = (0..4).map(|guesser| {
        let (sidecar, stop) = (Sidecar::new(&control_plane), std::sync::Arc::clone(&stop));
        tokio::spawn(async move {
            let mut refused = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let text = format!("weft1.weft.local.x.{guesser}-{refused}.secret");
                let answer = sidecar.sign_csr(Credential::JoinToken(text), Vec::new());
                answer.await.unwrap_err();
                refused += 1;
            }
            refused
        })
    });
    let guessing: Vec<_> = guessing.collect();
    for number in 0..100 {
        let neighbour = control_plane.enrol(&format!("shop/w{number}"), &[80]).await;
        neighbour.register(&[80]).await.leave().await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut refused = 0;
    for guessing in guessing {
        refused += guessing.await.unwrap();
    }
    assert!(refused > 200, "no attack: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_a_token_for_the_control_plane() {
    let control_plane = ControlPlane::start().await;
    let client = control_plane.client();
    for body in [
        serde_json::json!({"workload": "weft-system/control-plane", "ttlSeconds": 60}),
        serde_json::json!({"workload": "shop/web", "services": ["weft-system/api"], "ttlSeconds": 60}),
    ] {
        let made = client
            .post::<_, serde_json::Value>("/v1/tokens", &body)
            .await;
        let error = made.unwrap_err().to_string();
        assert!(error.contains("the namespace weft-system"), "{error}");
    }
}
