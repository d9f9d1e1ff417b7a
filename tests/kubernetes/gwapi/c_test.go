// Package gwapi runs the conformance suite of the Gateway API.
package gwapi

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
)

func TestConformance(t *testing.T) {
	// In 1.5.1 this test applies the manifest of the test before it, which has no route for what it
	// then asks for. Its own manifest is in the suite.
	for i := range tests.ConformanceTests {
		test := &tests.ConformanceTests[i]
		if test.ShortName == "MeshHTTPRoute307Redirect" {
			test.Manifests = []string{"tests/mesh/httproute-307-redirect.yaml"}
		}
	}
	conformance.RunConformance(t)
}
